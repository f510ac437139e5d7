"""Loading by folder: dtype, window, and the answers of what was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from families import build
from memograft import Engine
from test_engine import ask, generated


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    build("llama", dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder(folder: Path) -> None:
    with Engine.from_pretrained(folder, max_length=100, max_batch=2) as engine:
        assert engine.max_length == 100
        if not torch.cuda.is_available():
            assert engine.model.dtype == torch.float32
        assert not engine.model.training
        assert engine.answer(ask()).token_ids == generated(engine, ask())


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
