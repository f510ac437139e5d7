"""`MemograftEmbeddings`: the vectors of Memograft's embedders."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from memograft.errors import SettingsError
from memograft.passages.embedders import LexicalEmbedder

from langchain_memograft import MemograftEmbeddings

TEXTS = ["Paris is the capital of France.", "Bergamot is a citrus fruit.", ""]


async def test_the_vectors_are_the_embedders() -> None:
    embeddings, embedder = MemograftEmbeddings(LexicalEmbedder(128)), LexicalEmbedder(128)
    assert embeddings.embed_documents(TEXTS) == embedder.embed_documents(TEXTS).tolist()
    assert embeddings.embed_query(TEXTS[0]) == embedder.embed_query(TEXTS[0]).tolist()
    assert embeddings.embed_documents(TEXTS) == await embeddings.aembed_documents(TEXTS)
    assert embeddings.embed_query(TEXTS[1]) == await embeddings.aembed_query(TEXTS[1])
    assert np.linalg.norm(embeddings.embed_query(TEXTS[0])) == pytest.approx(1)
    assert {type(number) for number in embeddings.embed_query("x")} == {float}
    assert embeddings.embed_documents([]) == []
    assert len(MemograftEmbeddings().embed_query("x")) == 1024


async def test_many_callers_at_once() -> None:
    embeddings = MemograftEmbeddings()
    together = await asyncio.gather(*(embeddings.aembed_query(f"text {n}") for n in range(40)))
    assert together == [embeddings.embed_query(f"text {n}") for n in range(40)]


def test_in_another_store() -> None:
    store = InMemoryVectorStore.from_texts(TEXTS[:2], MemograftEmbeddings())
    assert store.similarity_search("capital of France", k=1)[0].page_content == TEXTS[0]


@pytest.mark.parametrize(
    ("method", "argument", "text"),
    [
        ("embed_documents", "one", r"`texts` must be a list, got one str; write texts=\[...\]"),
        ("embed_documents", ["a", 7], r"texts\[1\] must be a string, got int; convert it first"),
        ("embed_documents", [None], r"texts\[0\] must be a string, got NoneType"),
        ("embed_query", ["a"], "`text` must be a string, got list; embed_documents takes a list"),
    ],
)
async def test_what_is_no_text(method: str, argument: Any, text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        getattr(MemograftEmbeddings(), method)(argument)
    with pytest.raises(SettingsError, match=text):
        await getattr(MemograftEmbeddings(), f"a{method}")(argument)


def test_what_is_no_embedder() -> None:
    with pytest.raises(SettingsError, match="`embedder` must be an embedder of Memograft, got DeterministicFakeEmbedd"):
        MemograftEmbeddings(DeterministicFakeEmbedding(size=3))  # type: ignore[arg-type]
