"""What all tests share: one engine of the bundled model for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from memograft import Engine, shared_engine

from langchain_memograft import ChatMemograft


@pytest.fixture(scope="session", autouse=True)
def tiny() -> Iterator[Engine]:
    """The engine of every `model="tiny"`: shared engines live as long as somebody holds them."""
    engine = shared_engine("tiny")
    yield engine
    engine.close()


@pytest.fixture
def chat(tiny: Engine) -> ChatMemograft:
    """The bundled model as a chat model, with memories of its own."""
    return ChatMemograft(model="tiny", max_tokens=24)
