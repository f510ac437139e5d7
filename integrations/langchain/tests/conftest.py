"""Fixtures of all tests: the suite's models, and a chat model with the bundled one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from memograft import Engine

from langchain_memograft import ChatMemograft

pytest_plugins = ["conformance.fixtures"]


@pytest.fixture(scope="session", autouse=True)
def held(tiny: Engine) -> Engine:
    """The engine of every `model="tiny"`. Without this reference, each test would load it again."""
    return tiny


@pytest.fixture
def chat(tiny: Engine) -> ChatMemograft:
    """A chat model with the bundled model."""
    return ChatMemograft(model="tiny", max_tokens=24)


@pytest.fixture
def blockbuster() -> Iterator[BlockBuster]:
    """Makes blocking of the event loop an error, for the whole test."""
    with blockbuster_ctx() as blocking:
        yield blocking
