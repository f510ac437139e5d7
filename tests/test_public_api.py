"""The public names, what importing them costs, and the architecture's snippets."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

import memograft
from memograft import Document, Engine, FastMem, Request, Sampling

NAMES = [
    "Answer",
    "Bank",
    "Cad",
    "Choice",
    "Citation",
    "Compacted",
    "Conflict",
    "Datastore",
    "Document",
    "Dola",
    "Embedder",
    "Engine",
    "FastMem",
    "Gist",
    "Hit",
    "IndexSettings",
    "Kept",
    "LexicalEmbedder",
    "Mac",
    "MacBank",
    "Memory",
    "MemoryHandle",
    "MemoryReport",
    "Reference",
    "RemoteEngine",
    "Request",
    "Rtd",
    "Sampling",
    "SentenceTransformerEmbedder",
    "ServedMemory",
    "Source",
    "SourceShare",
    "Timings",
    "TokenLogprob",
    "TokenReferences",
    "Usage",
    "VectorStore",
    "shared_datastore",
    "shared_engine",
]
HEAVY = ["torch", "transformers", "peft", "faiss", "sklearn", "numpy", "sentence_transformers"]


def test_the_public_names_are_frozen() -> None:
    assert memograft.__all__ == NAMES == sorted(memograft._HOMES)
    assert set(NAMES) <= set(dir(memograft))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_can_be_imported(name: str) -> None:
    value = getattr(memograft, name)
    assert value.__name__ == name
    assert value.__module__.startswith("memograft.")


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="module 'memograft' has no attribute 'Nonsense'"):
        memograft.Nonsense  # noqa: B018


@pytest.mark.parametrize("module", ["memograft", "memograft.cli", "memograft.errors", "memograft.documents"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_snippets_of_the_architecture(models: Any, tokenizer: Any, tmp_path: Any) -> None:
    engine = Engine(models(), tokenizer)
    documents = [Document("The capital of France is Paris."), "A river.", {"text": "A book.", "id": "b"}]
    short = Sampling(max_new_tokens=4, temperature=0.0, top_p=1.0, stop=["never"], seed=0)

    everything = FastMem(relevance=None)  # a random model finds no document relevant
    answer = engine.answer("What is the capital of France?", documents=documents, memory=everything, sampling=short)
    assert isinstance(answer.text, str)
    assert answer.usage.completion_tokens == 4
    assert answer.finish_reason == "length"
    memory = answer.memory
    assert memory is not None
    assert isinstance(memory.rolled_back, bool)
    assert (memory.steps, memory.loss_before > 0, memory.loss_after > 0, memory.kl >= 0) == (4, True, True, True)
    assert all(t >= 0 for t in (answer.timings.prefill, answer.timings.memorize, answer.timings.decode))

    requests = [
        Request(messages=[{"role": "user", "content": "Who?"}], documents=documents, sampling=short),
        Request("Who?", documents=documents, memory=FastMem.paper(), sampling=short),
    ]
    answers = engine.answer_batch(requests)
    assert [a.memory is None for a in answers] == [True, False]
    assert "".join(engine.stream(requests[0])) == answers[0].text

    async def twins() -> tuple[str, str]:
        pieces = [piece async for piece in engine.astream(requests[0])]
        return "".join(pieces), (await engine.aanswer("Who?", documents=documents, sampling=short)).text

    assert asyncio.run(twins()) == (answers[0].text, answers[0].text)

    handle = engine.memorize(documents, memory=FastMem(steps=2))
    handle.save(tmp_path / handle.id)
    again = engine.answer("Who?", memory=handle, sampling=short)
    assert again.usage.cached_tokens > 0
    engine.close()


def test_an_interpreter_that_ends_in_the_middle_of_an_answer() -> None:
    """The interpreter exits without hanging or aborting."""
    code = f"""
import sys
sys.path.insert(0, {str(__import__("pathlib").Path(__file__).parent)!r})
from families import build
from tokenizers_ import make
from memograft import Engine, Request, Sampling
engine = Engine(build("llama"), make("bpe"))
stream = engine.stream(Request("Who?", sampling=Sampling(230, temperature=1.0)))
print(repr(next(stream)))
job = engine._submit([Request("Who?", sampling=Sampling(230, temperature=1.0)) for _ in range(3)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
