"""Memories that vLLM asks for by name: from folders, URLs and banks; unknown, damaged and foreign ones; the plugin."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import tomllib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from families import build
from memograft import Bank, Engine, vllm_plugin
from memograft.errors import MemoryFormatError, SettingsError
from memograft.memory.export import RANKS, checked, export
from memograft.memory.fetch import fetched
from test_engine import FACTS, ask
from test_export import BASE, FULL, LORA, weights
from test_layering import ROOT

HAS_VLLM = importlib.util.find_spec("vllm") is not None
if HAS_VLLM and not torch.cuda.is_available():  # vLLM's wheel for GPUs finds no platform then
    import vllm.platforms
    from vllm.platforms.cpu import CpuPlatform

    vllm.platforms._current_platform = CpuPlatform()


class Locked(MemoryFileSystem):  # type: ignore[misc]
    """A place that may not be read."""

    protocol = "locked"

    def cat_file(self, path: str, *args: Any, **options: Any) -> Any:
        raise PermissionError(f"{path} may not be read")

    info = cat_file


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
        with pytest.raises(MemoryFormatError, match=r"base model 'lab/base', and 'lab/other' is served; .*--base-"):
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
            with pytest.raises(
                MemoryFormatError, match=r"page.json (is damaged|must name a folder).*export the memory"
            ):
                fetched(str(out), "page", cache, BASE)


def test_a_bank(tokenizer: Any, cache: Path, tmp_path: Path) -> None:
    """Its memories are exported when they are asked for; a copy outlives its entry."""
    bank, model = Bank(tmp_path / "bank", prefix_files="exact"), build("llama")
    model.config._name_or_path = BASE
    with Engine(model, tokenizer, bank=bank) as engine:
        engine.answer(ask(documents=FACTS, memory=FULL))
        engine.answer(ask(documents=FACTS[:1], memory=LORA))
    place = str(bank.folder)
    entries = bank.entries()
    assert {entry.kind for entry in entries} == {"memory", "prefix"}
    for entry in entries:
        folder = fetched(place, entry.id, cache, BASE, max_rank=8)
        if entry.kind == "prefix":
            assert folder is None
            continue
        assert folder is not None
        about = checked(folder)
        assert (about["memory"], about["rank"]) == (entry.id, 8)
        whole, served = weights(entry.path), weights(folder)
        errors = {name: float((whole[name] - served[name]).norm() / whole[name].norm()) for name in whole}
        assert errors == pytest.approx(about["errors"], rel=1e-4, abs=1e-6)
        with pytest.raises(MemoryFormatError, match="'lab/base', and 'lab/other' is served"):
            fetched(place, entry.id, cache, "lab/other")
        bank.remove(entry.id)
        assert checked(folder) == about
        assert fetched(place, entry.id, cache, BASE) is None


def test_a_bank_of_a_model_without_a_name(make_engine: Any, cache: Path, tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank")
    make_engine(bank=bank).answer(ask(documents=FACTS, memory=LORA))
    with pytest.raises(SettingsError, match="made with a model without a name; pass one"):
        fetched(str(bank.folder), bank.entries()[0].id, cache, BASE)


@dataclass
class StandInRequest:
    """What the plugin uses of vLLM's `LoRARequest`, where vLLM is not installed."""

    lora_name: str
    lora_int_id: int
    lora_path: str


class StandInResolver(ABC):
    """What the plugin uses of vLLM's `LoRAResolver`."""

    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> StandInRequest | None: ...


@dataclass
class StandInRegistry:
    resolvers: dict[str, Any] = field(default_factory=dict)

    def register_resolver(self, name: str, resolver: Any) -> None:
        self.resolvers[name] = resolver


class TestPlugin:
    """With vLLM's own classes where it is installed."""

    @pytest.fixture
    def registry(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Any:
        monkeypatch.setenv("MEMOGRAFT_CACHE", str(cache))
        for name in (vllm_plugin.MEMORIES, vllm_plugin.MAX_RANK):
            monkeypatch.delenv(name, raising=False)
        if HAS_VLLM:
            from vllm.lora.resolver import LoRAResolverRegistry

            monkeypatch.setattr(LoRAResolverRegistry, "resolvers", {})
            return LoRAResolverRegistry
        modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request", "vllm.lora.resolver")}
        modules["vllm.lora.request"].LoRARequest = StandInRequest  # type: ignore[attr-defined]
        modules["vllm.lora.resolver"].LoRAResolver = StandInResolver  # type: ignore[attr-defined]
        modules["vllm.lora.resolver"].LoRAResolverRegistry = StandInRegistry()  # type: ignore[attr-defined]
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        return modules["vllm.lora.resolver"].LoRAResolverRegistry  # type: ignore[attr-defined]

    def registered(self, registry: Any) -> Any:
        vllm_plugin.register()
        return registry.resolvers.get("memograft")

    def test_resolves(self, registry: Any, memory: Path, cache: Path, tmp_path: Path, monkeypatch: Any) -> None:
        made = export(memory, tmp_path / "out", base_model=BASE, name="page")
        monkeypatch.setenv(vllm_plugin.MEMORIES, str(tmp_path / "out"))
        resolver = self.registered(registry)
        found = asyncio.run(resolver.resolve_lora(BASE, "page"))
        assert found.lora_name == "page"
        assert found.lora_int_id > 0
        assert Path(found.lora_path) == cache / "vllm" / made.folder.name
        assert asyncio.run(resolver.resolve_lora(BASE, "unknown")) is None
        assert isinstance(resolver, sys.modules["vllm.lora.resolver"].LoRAResolver)

    def test_faults_are_warnings(
        self, registry: Any, memory: Path, tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        export(memory, tmp_path / "out", base_model=BASE, name="page")
        monkeypatch.setenv(vllm_plugin.MEMORIES, str(tmp_path / "out"))
        resolver = self.registered(registry)
        assert not caplog.messages
        assert asyncio.run(resolver.resolve_lora("lab/other", "page")) is None
        assert "memory 'page' is not served: memory page belongs to the base model 'lab/base'" in caplog.text
        monkeypatch.setenv(vllm_plugin.MEMORIES, "nothing://here")
        assert asyncio.run(self.registered(registry).resolve_lora(BASE, "page")) is None
        assert "memory 'page' is not served: Protocol not known: nothing" in caplog.text
        fsspec.register_implementation("locked", Locked, clobber=True)
        monkeypatch.setenv(vllm_plugin.MEMORIES, "locked://here")
        assert asyncio.run(self.registered(registry).resolve_lora(BASE, "page")) is None
        assert "/page.json may not be read" in caplog.text

    def test_settings(self, registry: Any, tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
        assert self.registered(registry) is None, "it does nothing unless it is asked to"
        monkeypatch.setenv(vllm_plugin.MEMORIES, str(tmp_path / "later"))
        for wrong in ("20", "many", "0"):
            monkeypatch.setenv(vllm_plugin.MAX_RANK, wrong)
            assert self.registered(registry) is None
            assert (
                f"`MEMOGRAFT_MAX_RANK` must be one of 1, 8, 16, 32, 64, 128, 256, 320, 512, got {wrong!r}"
                in (caplog.messages[-1])
            )
        monkeypatch.setenv(vllm_plugin.MAX_RANK, "64")
        resolver = self.registered(registry)
        assert "there is no folder" in caplog.messages[-1]
        assert asyncio.run(resolver.resolve_lora(BASE, "page")) is None

    @pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
    def test_without_vllm(self, tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
        monkeypatch.setenv(vllm_plugin.MEMORIES, str(tmp_path))
        vllm_plugin.register()
        assert "memories are not served: No module named 'vllm'; correct it" in caplog.text

    def test_it_is_light(self, tmp_path: Path) -> None:
        """vLLM runs it in each of its processes."""
        code = (
            "import memograft.vllm_plugin as p, sys; p.register(); "
            "print([m for m in ('torch', 'transformers', 'peft', 'fsspec', 'numpy', 'vllm') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert (done.stdout.strip(), done.stderr) == ("[]", "")

    def test_the_entry_point(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        (value,) = project["entry-points"]["vllm.general_plugins"].values()
        assert EntryPoint("memograft", value, "vllm.general_plugins").load() is vllm_plugin.register


@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed")
@pytest.mark.filterwarnings("ignore")  # vLLM's own
class TestVllmsOwnChecks:
    """vLLM's code for LoRA folders, on a CPU: the checks of the configuration, and loading the weights."""

    @pytest.mark.parametrize("memory", [LORA, FULL], ids=["lora", "full"])
    @pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "opt", "gpt_neox"])
    def test_a_folder_is_loaded(self, make_engine: Any, tmp_path: Path, family: str, memory: Any) -> None:
        from vllm.config.lora import LoRAConfig
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.peft_helper import PEFTHelper

        engine = make_engine(family)
        folder = export(engine.memorize(FACTS, memory).save(tmp_path / "m"), tmp_path / "out", base_model=BASE).folder
        helper = PEFTHelper.from_local_dir(str(folder), 256)
        rank = helper.r
        assert rank == (8 if memory is LORA else 32)
        helper.validate_legal(LoRAConfig(max_lora_rank=rank))
        with pytest.raises(ValueError, match="greater than max_lora_rank"):
            helper.validate_legal(LoRAConfig(max_lora_rank=1))
        changes = weights(folder)
        expected = {name.rsplit(".", 1)[-1] for name in changes}
        loaded = LoRAModel.from_local_checkpoint(
            str(folder), expected, helper, lora_model_id=1, device="cpu", dtype=torch.float32
        )
        assert loaded.loras.keys() == changes.keys()
        for name, layer in loaded.loras.items():
            assert layer.scaling == 1
            assert torch.allclose((layer.lora_b @ layer.lora_a).double(), changes[name], atol=1e-6)
        with pytest.raises(ValueError, match="expected target modules in"):
            LoRAModel.from_local_checkpoint(str(folder), {"q_proj"}, helper, device="cpu")

    def test_the_ranks_are_vllms(self) -> None:
        from vllm.config.lora import MaxLoRARanks

        assert RANKS["vllm"] == get_args(MaxLoRARanks)
