"""Tiny random models and engines for the tests, without network; one torch thread unless OMP_NUM_THREADS is set."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers of pytest-xdist share the cores

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from conformance.fixtures import pytest_collection_modifyitems, smollm2, trained  # noqa: F401
from families import build
from memograft import Engine
from tokenizers_ import make

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make("bpe")


@pytest.fixture(scope="session")
def models() -> Callable[..., Any]:
    """`models(family)` builds a model once per session; tests must not change it."""
    built: dict[Any, Any] = {}

    def get(family: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
        if (family, dtype) not in built:
            built[family, dtype] = build(family, dtype=dtype)
        return built[family, dtype]

    return get


@pytest.fixture
def make_engine(models: Any, tokenizer: Any) -> Iterator[Callable[..., Engine]]:
    """`make_engine(family)` makes an engine that is closed after the test."""
    engines: list[Engine] = []

    def make_one(family: str = "llama", dtype: torch.dtype = torch.float32, **options: Any) -> Engine:
        engines.append(Engine(models(family, dtype), tokenizer, **options))
        return engines[-1]

    yield make_one
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(make_engine: Any) -> Engine:
    return make_engine()


@pytest.fixture(scope="session")
def tiny() -> Iterator[Engine]:
    """The bundled model."""
    with Engine.from_pretrained("tiny") as opened:
        yield opened
