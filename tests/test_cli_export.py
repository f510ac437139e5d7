"""`memograft export` with a memory's folder and a bank; and the commands of docs/cluster.md."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from memograft import Bank, Engine, Kept
from memograft.cli.app import app
from memograft.memory.export import checked
from memograft.memory.fetch import fetched
from test_docs import SNIPPET
from test_engine import FACTS, ask
from test_export import BASE, FULL, LORA
from test_layering import ROOT


class TestExport:
    @pytest.fixture
    def bank(self, make_engine: Any, tmp_path: Path) -> Bank:
        """Two memories, and prefixes."""
        bank = Bank(tmp_path / "bank", prefix_files="int8")
        engine = make_engine(bank=bank)
        engine.answer(ask(documents=FACTS, memory=FULL))
        engine.answer(ask(documents=FACTS[:1], memory=LORA))
        return bank

    def run(self, *args: object, code: int = 0) -> str:
        result = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["export", *map(str, args)])
        assert result.exit_code == code, (result.output, result.exception)
        return result.output

    def test_a_memory(self, engine: Engine, tmp_path: Path) -> None:
        handle = engine.memorize(FACTS, FULL)
        folder, out = handle.save(tmp_path / "memory"), tmp_path / "out"
        for_vllm = ["--for", "vllm", "--out", out, "--base-model", BASE]
        told = json.loads(self.run(folder, *for_vllm, "--max-rank", 8, "--name", "page", "--json"))
        (one,) = told["exported"]
        assert (one["memory"], one["rank"], one["memory_rank"], one["base_model"]) == (handle.id, 8, 32, BASE)
        assert checked(Path(one["folder"]))["largest_error"] == one["largest_error"] > 0
        assert json.loads((out / "page.json").read_text())["folder"] == Path(one["folder"]).name
        text = self.run(folder, *for_vllm, "--max-rank", 8)
        assert f"(rank 32 cut to 8, largest relative error {one['largest_error']:.3g}; base model lab/base)" in text
        assert "(rank 32, exact; base model lab/base)" in self.run(folder, *for_vllm)
        lora = engine.memorize(FACTS, LORA).save(tmp_path / "lora")
        assert "rank 4 filled up to 8, exact" in self.run(lora, *for_vllm)
        assert "rank 4, exact" in self.run(lora, "--for", "sglang", *for_vllm[2:])

    def test_a_bank(self, bank: Bank, tmp_path: Path) -> None:
        ids = {entry.id for entry in bank.entries() if entry.kind == "memory"}
        to = ["--for", "vllm", "--out", tmp_path / "out", "--base-model", BASE, "--json"]
        told = json.loads(self.run(bank.folder, *to))
        assert ({one["memory"] for one in told["exported"]}, told["not_exported"]) == (ids, {})
        one = min(ids)
        told = json.loads(self.run(bank.folder, *to, "--id", one[:12], "--name", "page"))
        assert [made["memory"] for made in told["exported"]] == [one]

    def test_what_cannot_be_exported_is_named(self, bank: Bank, engine: Engine, tmp_path: Path) -> None:
        kept = engine.memorize(FACTS, Kept())
        bank.put(kept)
        to = ["--for", "vllm", "--out", tmp_path / "out", "--base-model", BASE]
        text = self.run(bank.folder, *to)
        assert f"warning: not exported: vLLM loads LoRA adapters only, and memory {kept.id}, of kind kept," in text
        assert text.count(" -> ") == 2
        assert "of kind kept, is not one" in self.run(bank.folder, *to, "--id", kept.id, code=1)
        for entry in bank.entries():
            if entry.id != kept.id:
                bank.remove(entry.id)
        bank.put(engine.memorize(FACTS[:1], Kept()))
        assert "none of the 2 memories in" in self.run(bank.folder, *to, code=1)

    def test_settings_that_a_server_does_not_follow(self, engine: Engine, tmp_path: Path) -> None:
        memory = replace(LORA, gate="support", contrast=0.5, cad=0.5)
        folder = engine.memorize(FACTS, memory).save(tmp_path / "memory")
        text = self.run(folder, "--for", "sglang", "--out", tmp_path / "out", "--base-model", BASE)
        for name in ("gate", "contrast", "cad"):
            assert f"was made with `{name}`, which sglang does not follow" in text

    def test_errors(self, bank: Bank, tmp_path: Path) -> None:
        to = ["--for", "vllm", "--out", tmp_path / "out"]
        assert "must be a saved memory or the folder of a bank, but does not exist" in self.run(
            tmp_path / "none", *to, code=1
        )
        (tmp_path / "empty").mkdir()
        assert "needs memograft.json" in self.run(tmp_path / "empty", *to, code=1)
        assert "without a name; pass one" in self.run(bank.folder, *to, code=1)
        assert "`--name` names one memory, and 2 are exported" in self.run(bank.folder, *to, "--name", "a", code=1)
        assert "must be one of 1, 8, 16" in self.run(bank.folder, *to, "--max-rank", 20, code=1)
        assert "'tgi' is not one of 'vllm', 'sglang'" in self.run(bank.folder, "--for", "tgi", *to[2:], code=2)


def test_the_page_about_clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its snippets and then its commands, in one folder (test_docs.py runs the snippets alone)."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    scope: dict[str, Any] = {}
    for code in SNIPPET.findall(page):
        exec(compile(code, "cluster.md", "exec"), scope)
    scope["engine"].close()
    (command,) = re.findall(r"^memograft (.+)$", page, re.MULTILINE)
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == 0, result.output
    id = scope["request"]["model"]
    found = fetched("exported", id, tmp_path / "cache", "lab/tiny")
    assert found is not None
    assert checked(found)["memory"] == id
    assert f"{id} -> exported/{found.name} (rank 16, exact; base model lab/tiny)" in result.output.replace("\n", "")
