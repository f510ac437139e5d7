"""What all tests share: the suite's models, and one chat model of the bundled one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from memograft import Engine

from langchain_memograft import ChatMemograft

pytest_plugins = ["conformance.fixtures"]


@pytest.fixture(scope="session", autouse=True)
def held(tiny: Engine) -> Engine:
    """The engine of every `model="tiny"`, which would be loaded anew whenever nobody holds it."""
    return tiny


@pytest.fixture
def chat(tiny: Engine) -> ChatMemograft:
    """The bundled model as a chat model, with memories of its own."""
    return ChatMemograft(model="tiny", max_tokens=24)


@pytest.fixture
def blockbuster() -> Iterator[BlockBuster]:
    """Fails what blocks the event loop, for the whole test."""
    with blockbuster_ctx() as blocking:
        yield blocking
