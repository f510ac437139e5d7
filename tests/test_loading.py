"""Loading from a folder: dtype, window, and the answers of a saved model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from families import build
from gguf_files import write
from memograft import Engine, shared_engine
from memograft.errors import SettingsError
from memograft.model import loading
from memograft.model.loading import computes_in_bfloat16, load
from test_engine import ask, generated


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    build("llama", dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def _measured_anew() -> Iterator[None]:
    """Reset the cached measurement of the CPU."""
    loading._is_faster.cache_clear()
    yield
    loading._is_faster.cache_clear()


def can_compute_in(monkeypatch: pytest.MonkeyPatch, *flags: str, library: bool = True, faster: bool = True) -> None:
    """Pretend that the CPU has these flags and that there is no GPU; bfloat16 is emulated if necessary."""
    seconds = {torch.bfloat16: 1.0, torch.float32: 2.0 if faster else 0.5}
    monkeypatch.setattr(loading, "_seconds", seconds.get)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(flags, True), raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_folder(folder: Path) -> None:
    with Engine.from_pretrained(folder, max_length=100, max_batch=2, dtype=torch.float32) as engine:
        assert engine.max_length == 100
        assert not engine.model.training
        assert engine.answer(ask()).token_ids == generated(engine, ask())


def test_a_model_stays_on_the_cpu_where_that_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    can_compute_in(monkeypatch, "avx2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model, _ = load(folder, "cpu")
    assert model.device.type == "cpu"
    assert model.dtype == torch.float32  # the CPU's default, not the checkpoint's dtype


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "cuda:x", "", "meta", "vulkan"])
def test_a_device_that_is_not_there(device: str) -> None:
    rule = rf"`device` must be one that this machine and its torch have \(cpu.*\), got '{device}'; leave it out"
    with pytest.raises(SettingsError, match=rule):
        Engine.from_pretrained("tiny", device=device)


def test_a_device_is_part_of_what_is_shared_and_not_given_beside_a_map() -> None:
    on_cpu = shared_engine("tiny", device="cpu")
    assert on_cpu is shared_engine("tiny", device="cpu")
    assert on_cpu.model.device.type == "cpu"
    with pytest.raises(SettingsError, match="`device` places the whole model and `device_map` its parts, got"):
        Engine.from_pretrained("tiny", device="cpu", device_map={"": "cpu"})


@pytest.mark.parametrize(
    ("flags", "library", "expected"),
    [
        (["avx2", "avx512_f"], True, torch.float32),
        (["avx2", "avx512_bf16"], True, torch.bfloat16),
        (["amx_bf16"], True, torch.bfloat16),
        (["neon", "bf16"], True, torch.bfloat16),
        (["neon", "bf16"], False, torch.float32),
        ([], True, torch.float32),
    ],
)
def test_the_dtype_of_a_bfloat16_checkpoint_on_a_cpu(
    flags: list[str], library: bool, expected: torch.dtype, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    can_compute_in(monkeypatch, *flags, library=library)
    assert load(folder)[0].dtype == expected


@pytest.mark.parametrize("own", [torch.float32, torch.float16])
def test_what_bfloat16_would_round_is_float32_on_a_cpu(
    own: torch.dtype, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    can_compute_in(monkeypatch, "avx512_bf16")
    build("llama", dtype=own).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load(tmp_path)[0].dtype == torch.float32
    assert load("tiny")[0].dtype == torch.float32


@pytest.mark.parametrize(("flag", "expected"), [("avx512_bf16", torch.bfloat16), ("avx2", torch.float32)])
def test_the_dtype_of_a_gguf_file_on_a_cpu(
    flag: str, expected: torch.dtype, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMOGRAFT_CACHE", str(tmp_path / "cache"))
    can_compute_in(monkeypatch, flag)
    file = write(tmp_path / "model.gguf", build("llama"), tokenizer, quantised=True)
    assert load(file)[0].dtype == load(file, dtype="auto")[0].dtype == expected


def test_the_dtype_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    can_compute_in(monkeypatch, "avx512_bf16")
    caplog.set_level("INFO", "memograft")
    load(folder)
    assert caplog.messages == [f"{folder}: bfloat16 on cpu"]


def test_a_cpu_that_has_the_flag_and_is_slower(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    can_compute_in(monkeypatch, "avx512_bf16", faster=False)
    assert load(folder)[0].dtype == torch.float32


def test_both_are_measured() -> None:
    assert all(0 < loading._seconds(dtype) < 10 for dtype in (torch.float32, torch.bfloat16))


def test_a_torch_that_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not computes_in_bfloat16()


def test_a_dtype_of_choice(folder: Path) -> None:
    with Engine.from_pretrained(str(folder), dtype=torch.bfloat16) as engine:
        assert engine.model.dtype == torch.bfloat16
        assert engine.answer(ask(n=2)).usage.completion_tokens == 2


def test_saved_memories_name_their_model(folder: Path, tmp_path: Path) -> None:
    with Engine.from_pretrained(folder) as engine:
        handle = engine.memorize(["The capital of France is Paris."])
        assert handle.base_model == str(folder)


def test_a_name_that_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises((OSError, ValueError)):
        Engine.from_pretrained(tmp_path / "nothing")
