"""Exported memories: exact under plain PEFT, cut with the stated error, and refused where a server would fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from families import FAMILIES, build
from memograft import Bank, Compacted, Engine, FastMem, Gist, Kept
from memograft.errors import MemoryFormatError, SettingsError
from memograft.memory.export import checked, export, fitted, rank_for
from memograft.model.adapter import Adapter, applied, stack
from test_engine import FACTS, ask, prompt_ids

LORA = FastMem(steps=3, learning_rate=0.05, rank=4, target_kl=None, max_kl=1e9, fallback=False, relevance=None)
FULL = replace(LORA, adapter="full", learning_rate=0.01)
BASE = "lab/base"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Projection -> the change of its weight, from the file alone, in float64."""
    tensors = load_file(folder / "adapter_model.safetensors")
    names = {name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for name in tensors}
    at = "base_model.model.{}.lora_{}.weight"
    return {n: tensors[at.format(n, "B")].double() @ tensors[at.format(n, "A")].double() for n in names}


# PEFT 0.21 uses an old name of transformers: a warning that neither we nor a user can avoid.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("memory", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "opt", "gpt_neox", "qwen2_moe"])
def test_plain_peft_gives_the_engines_logits(tokenizer: Any, tmp_path: Path, family: str, memory: FastMem) -> None:
    model = build(family)
    server = "sglang" if family == "gpt_neox" else "vllm"
    with Engine(model, tokenizer) as engine:
        handle = engine.memorize(FACTS, memory)
        made = export(handle.save(tmp_path / "memory"), tmp_path / "out", server, base_model=BASE)
        ids = torch.tensor([prompt_ids(engine, ask(documents=FACTS))])
        with torch.no_grad(), applied(engine._backbone, stack([handle.adapter], engine._backbone)):
            ours = model(ids).logits
        with torch.no_grad():
            base = model(ids).logits
    rank = 4 if memory is LORA else 32
    assert (made.memory_rank, made.rank) == (rank, 8 if (rank, server) == (4, "vllm") else rank)
    assert made.largest_error == 0
    copy = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**FAMILIES[family])).eval()
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(copy, str(made.folder)).eval()(input_ids=ids).logits
    assert float((theirs - ours).abs().max()) <= 1e-5 * float(ours.abs().max().clamp_min(1))
    assert float((theirs - base).abs().max()) > 1e-2
    config = json.loads((made.folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["modules_to_save"]) == (made.rank, made.rank, None)
    assert (config["base_model_name_or_path"], config["bias"]) == (BASE, "none")
    assert config["target_modules"] == sorted(handle.adapter.lora_a)
    assert {file.name for file in made.folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "memograft_export.json",
    }


@pytest.fixture
def saved(engine: Engine, tmp_path: Path) -> Path:
    return engine.memorize(FACTS, FULL).save(tmp_path / "memory")


class TestCut:
    @pytest.mark.parametrize("rank", [1, 8, 16])
    def test_the_stated_error_is_the_measured_one(self, saved: Path, tmp_path: Path, rank: int) -> None:
        made = export(saved, tmp_path / "out", base_model=BASE, max_rank=rank)
        assert (made.memory_rank, made.rank) == (32, rank)
        whole, cut = weights(saved), weights(made.folder)
        stated = json.loads((made.folder / "memograft_export.json").read_text())
        assert stated["errors"].keys() == whole.keys() == cut.keys()
        for name, change in whole.items():
            measured = float((change - cut[name]).norm() / change.norm())
            assert measured == pytest.approx(stated["errors"][name], rel=1e-4)
            least = float(torch.linalg.svdvals(change)[rank:].norm() / change.norm())
            assert measured == pytest.approx(least, rel=1e-4), "no matrix of this rank is nearer"
            assert measured > 1e-3, "a cut without an error proves nothing"
        assert stated["largest_error"] == max(stated["errors"].values()) == made.largest_error

    def test_a_change_of_a_low_rank_is_cut_without_loss(self) -> None:
        torch.manual_seed(0)
        small = torch.randn(48, 3) @ torch.randn(3, 32)
        whole = Adapter.from_dense({"up": small, "zero": torch.zeros(48, 32)}, 32)
        cut, errors = fitted(whole, 8)
        assert cut.rank == 8
        assert errors == pytest.approx({"up": 0, "zero": 0}, abs=1e-6)
        assert torch.allclose(cut.lora_b["up"] @ cut.lora_a["up"], small, atol=1e-4)

    def test_ranks(self) -> None:
        assert [rank_for(r, "vllm") for r in (1, 2, 8, 9, 257, 321, 4096)] == [1, 8, 8, 16, 320, 512, 512]
        assert [rank_for(r, "vllm", 16) for r in (1, 4, 16, 4096)] == [1, 8, 16, 16]
        assert [rank_for(r, "sglang") for r in (1, 5, 4096)] == [1, 5, 4096]
        assert rank_for(4096, "sglang", 100) == 100
        with pytest.raises(SettingsError, match=r"one of 1, 8, 16, .* takes as max_lora_rank, got 20"):
            rank_for(4, "vllm", 20)
        with pytest.raises(SettingsError, match="must be at least 1, got 0"):
            rank_for(4, "sglang", 0)


class TestPath:
    def test_content_decides(self, engine: Engine, saved: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        one = export(saved, out, base_model=BASE, name="page")
        assert export(saved, out, base_model=BASE).folder == one.folder
        id = json.loads((saved / "memograft.json").read_text())["id"]
        others = [
            export(saved, out, base_model="other"),
            export(engine.memorize(FACTS[:1], FULL).save(tmp_path / "new"), out, base_model=BASE, name="page"),
            export(saved, out, base_model=BASE, max_rank=8),
        ]
        assert len({one.folder, *(other.folder for other in others)}) == 4
        named = {name: json.loads((out / f"{name}.json").read_text())["folder"] for name in ("page", id)}
        assert named == {"page": others[1].folder.name, id: others[2].folder.name}, "the last export wins"

    def test_in_every_process(self, saved: Path, tmp_path: Path) -> None:
        """PEFT keeps the names of the modules in a set, whose order depends on the process."""
        code = (
            "import sys; from pathlib import Path; from memograft.memory.export import export; "
            "print(export(Path(sys.argv[1]), Path(sys.argv[2]), base_model='b').folder.name)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(saved), str(tmp_path / "there")],
            env=os.environ | {"PYTHONHASHSEED": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == export(saved, tmp_path / "here", base_model="b").folder.name

    def test_damage_is_found(self, saved: Path, tmp_path: Path) -> None:
        folder = export(saved, tmp_path / "out", base_model=BASE).folder
        assert checked(folder)["memory"] == json.loads((saved / "memograft.json").read_text())["id"]
        for name in ("adapter_config.json", "adapter_model.safetensors", "memograft_export.json"):
            good = (folder / name).read_bytes()
            for bad in (good[:-40] + b"}" * 40, b"", None):
                (folder / name).unlink()
                if bad is not None:
                    (folder / name).write_bytes(bad)
                with pytest.raises(MemoryFormatError, match=r"damaged|cannot be read.*; export the memory again"):
                    checked(folder)
                (folder / name).write_bytes(good)


class TestRefused:
    """What a server would not apply, or not load, is refused before anything is written."""

    @pytest.mark.parametrize(
        ("memory", "kind"), [(Kept(), "kept"), (Kept(LORA), "kept"), (Compacted(LORA, 2), "compacted")]
    )
    def test_keys_and_values(self, engine: Engine, tmp_path: Path, memory: Any, kind: str) -> None:
        folder = engine.memorize(FACTS, memory).save(tmp_path / "memory")
        with pytest.raises(
            MemoryFormatError,
            match=rf"vLLM loads LoRA adapters only, and memory \w+, of kind {kind}, .* FastMem",
        ):
            export(folder, tmp_path / "out", base_model=BASE)
        assert not (tmp_path / "out").exists()

    def test_a_gist_and_a_mac(self, tiny: Engine, tmp_path: Path) -> None:
        folder = tiny.memorize(FACTS[:1], Gist("tiny")).save(tmp_path / "gist")
        with pytest.raises(MemoryFormatError, match=r"SGLang loads LoRA adapters only, and memory .*, of kind gist, "):
            export(folder, tmp_path / "out", "sglang")
        for file, kind in {"mac_bank.json": "mac", "gist.json": "gist"}.items():
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / kind / file).write_text("{}")
            with pytest.raises(MemoryFormatError, match=rf"of kind {kind}, is not one; memorize its documents with"):
                export(tmp_path / kind, tmp_path / "out")

    def test_rolled_back(self, engine: Engine, tmp_path: Path) -> None:
        bank = Bank(tmp_path / "bank")
        bank.put(engine.memorize(FACTS, replace(LORA, max_kl=1e-9)))
        with pytest.raises(MemoryFormatError, match=r"has no weights to export: .*; memorize again"):
            export(bank.entries()[0].path, tmp_path / "out", base_model=BASE)

    def test_what_a_server_would_ignore(self, make_engine: Any, tmp_path: Path) -> None:
        folder = make_engine("gpt2").memorize(FACTS, LORA).save(tmp_path / "memory")
        with pytest.raises(MemoryFormatError, match=r"vLLM applies no LoRA to transposed .* memory \w+ has such"):
            export(folder, tmp_path / "out", base_model=BASE)
        for family in ("gpt2", "falcon"):
            folder = make_engine(family).memorize(FACTS, LORA).save(tmp_path / family)
            with pytest.raises(MemoryFormatError, match=r"SGLang ignores .* such as transformer\.h\.1\.mlp\.\w+, and"):
                export(folder, tmp_path / "out", "sglang", base_model=BASE)

    def test_names(self, saved: Path, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"`base_model` must be the name .* without a name; pass one"):
            export(saved, tmp_path / "out")
        for name in ("../up", "", ".hidden", "a/b", "x" * 129):
            with pytest.raises(SettingsError, match="`name` must be up to 128 letters"):
                export(saved, tmp_path / "out", base_model=BASE, name=name)

    def test_damaged(self, saved: Path, tmp_path: Path) -> None:
        (saved / "adapter_config.json").write_text("{}")
        with pytest.raises(MemoryFormatError, match=r"adapter_config.json is damaged \(its checksum is wrong\)"):
            export(saved, tmp_path / "out", base_model=BASE)
        with pytest.raises(MemoryFormatError, match=r"needs memograft.json, and .* has none"):
            export(tmp_path, tmp_path / "out", base_model=BASE)
