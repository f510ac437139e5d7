"""The bundled model, a random one, and nodes about a capital; one torch thread by default, no network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("IS_TESTING", "1")  # without it, `Settings.llm` of LlamaIndex looks for OpenAI
sys.path.append(str(Path(__file__).resolve().parents[3] / "tests"))  # the core's random models

import pytest
from conformance import pages
from conformance.fixtures import Seen
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.llms.memograft import Memograft
from memograft import Datastore, Engine, FastMem, Rtd

pytest_plugins = ["conformance.fixtures"]

QUESTION, ASKED, TAUGHT = pages.QUESTION, pages.VELMORA, pages.TORSTAD
PAGE = "The capital of Australia is Lisbon. Most people in Australia speak English."
OTHER = "The mayor of Velmora is Tor Anselk. Velmora lies on the Brin."
MEMORIZED = "The capital of Australia is Lisbon."
PLAIN = "The capital of Australia is Canberra."


class Pages(BaseRetriever):
    """A retriever that returns the same nodes for every query."""

    def __init__(self, *texts: str) -> None:
        self.nodes = [TextNode(text=text, id_=f"page-{n}") for n, text in enumerate(texts, start=1)]
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=node, score=1.0 / n) for n, node in enumerate(self.nodes, start=1)]


@pytest.fixture(scope="session")
def engine(tiny: Engine) -> Engine:
    """The bundled model."""
    return tiny


@pytest.fixture
def llm(engine: Engine) -> Memograft:
    """The bundled model, which memorizes."""
    return Memograft.from_engine(engine, model="tiny", memory=FastMem(), max_tokens=32)


@pytest.fixture
def plain(engine: Engine) -> Memograft:
    """The bundled model, without memorizing."""
    return Memograft.from_engine(engine, model="tiny", memory=None, max_tokens=32)


@pytest.fixture
def seen(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(engine, monkeypatch)


@pytest.fixture(scope="session")
def taught(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Datastore:
    """A datastore that also influences prompts with documents, because its examples differ from each other."""
    folder = tmp_path_factory.mktemp("datastore") / "store"
    others = [("What is the capital of France?", "Paris, of course!"), ("Who are you?", "I am Tor.")]
    Datastore.build(engine, [pages.EXAMPLE, *others], path=folder, progress=False).close()
    return Datastore.open(folder, read_only=True)


@pytest.fixture
def steered(plain: Memograft, taught: Datastore) -> Memograft:
    """The bundled model with this datastore."""
    return plain.model_copy(update={"datastore": Rtd(taught, weight=0.9)})


@pytest.fixture
def random_llm(random_engine: Engine) -> Memograft:
    return Memograft.from_engine(random_engine, memory=None, max_tokens=12)
