"""Memories that vLLM asks for by name: from folders, URLs and banks; unknown, damaged and foreign ones; the plugin."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec
import pytest

from memograft import Bank, Engine, vllm_plugin
from memograft.errors import MemoryFormatError
from memograft.memory.export import checked, export
from memograft.memory.fetch import fetched
from test_engine import FACTS, ask
from test_export import BASE, FULL, LORA, weights
from test_layering import ROOT

HAS_VLLM = importlib.util.find_spec("vllm") is not None


@pytest.fixture
def memory(engine: Engine, tmp_path: Path) -> Path:
    return engine.memorize(FACTS, LORA).save(tmp_path / "memory")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class TestFetched:
    @pytest.fixture(params=["folder", "url"])
    def place(self, request: Any, memory: Path, tmp_path: Path) -> Any:
        """A place with two versions of "page"; the last one counts."""
        out = tmp_path / "out"
        export(memory, out, base_model=BASE, max_rank=1, name="page")
        export(memory, out, base_model=BASE, name="page")
        if request.param == "folder":
            yield str(out)
            return
        files = fsspec.filesystem("memory")
        files.put(str(out), "/memories", recursive=True)
        yield "memory://memories"
        files.rm("/memories", recursive=True)

    def test_by_name_id_and_hash(self, place: str, memory: Path, cache: Path, tmp_path: Path) -> None:
        id = json.loads((memory / "memograft.json").read_text())["id"]
        last = json.loads((tmp_path / "out" / "page.json").read_text())["folder"]
        for name in ("page", id, last):
            found = fetched(place, name, cache, BASE)
            assert found == cache / last
            assert checked(found)["rank"] == 8
        (other,) = {p.name for p in (tmp_path / "out").iterdir() if p.is_dir()} - {last}
        assert checked(fetched(place, other, cache, BASE) or cache)["rank"] == 1

    def test_unknown_names(self, place: str, cache: Path, tmp_path: Path) -> None:
        (tmp_path / "secret.json").write_text(json.dumps({"folder": "0" * 32}))
        for name in ("none", "0" * 32, "../secret", "/etc/passwd", "", "a" * 300, "page.json", ".", "..", "page\0"):
            assert fetched(place, name, cache, BASE) is None
        assert not cache.exists()

    def test_another_base_model(self, place: str, cache: Path) -> None:
        with pytest.raises(MemoryFormatError, match=r"base model 'lab/base', and 'lab/other' is served; .* --base-model"):
            fetched(place, "page", cache, "lab/other")

    def test_a_damaged_copy_is_fetched_again(self, place: str, cache: Path) -> None:
        found = fetched(place, "page", cache, BASE)
        assert found is not None
        (found / "adapter_model.safetensors").write_bytes(b"half")
        assert checked(fetched(place, "page", cache, BASE) or cache)["rank"] == 8

    def test_a_damaged_source(self, memory: Path, cache: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        folder = export(memory, out, base_model=BASE, name="page").folder
        (folder / "adapter_model.safetensors").write_bytes(b"half")
        with pytest.raises(MemoryFormatError, match=r"damaged \(its checksum is wrong\); export the memory again"):
            fetched(str(out), "page", cache, BASE)
        for text in ('{"folder": "../../etc"}', "{", "[]", "{}"):
            (out / "page.json").write_text(text)
            with pytest.raises(MemoryFormatError, match=r"page.json (is damaged|must name a folder).*export the memory"):
                fetched(str(out), "page", cache, BASE)


def test_a_bank(tokenizer: Any, models: Any, cache: Path, tmp_path: Path) -> None:
    """Its memories are exported when they are asked for; a copy outlives its entry."""
    model = models()
    bank = Bank(tmp_path / "bank", prefix_files="exact")
    with Engine(model, tokenizer, bank=bank) as engine:
        model.config._name_or_path = BASE
        try:
            for documents, memory in ((FACTS, FULL), (FACTS[:1], LORA)):
                engine.answer(ask(documents=documents, memory=memory))
        finally:
            model.config._name_or_path = ""
        engine.answer(ask(documents=FACTS[1:], memory=LORA))
    kinds = {entry.id: entry for entry in bank.entries()}
    found = {}
    for id, entry in kinds.items():
        if entry.kind == "prefix":
            assert fetched(str(bank.folder), id, cache, BASE) is None
        elif json.loads((entry.path / "adapter_config.json").read_text())["base_model_name_or_path"]:
            found[id] = fetched(str(bank.folder), id, cache, BASE, max_rank=8)
        else:
            with pytest.raises(Exception, match="with a model without a name; pass one"):
                fetched(str(bank.folder), id, cache, BASE)
    assert len(found) == 2
    for id, folder in found.items():
        assert folder is not None
        assert checked(folder)["memory"] == id
        assert checked(folder)["rank"] == 8
        whole, served = weights(kinds[id].path), weights(folder)
        errors = {name: float((whole[name] - served[name]).norm() / whole[name].norm()) for name in whole}
        assert errors == pytest.approx(checked(folder)["errors"], rel=1e-4, abs=1e-6)
        bank.remove(id)
        assert (folder / "adapter_model.safetensors").is_file()
    with pytest.raises(MemoryFormatError, match="is served; serve that model"):
        Bank(tmp_path / "other").take(tmp_path / "cache" / "none") if not found else _elsewhere(tmp_path, tokenizer)


def _elsewhere(tmp_path: Path, tokenizer: Any) -> None:
    raise NotImplementedError
