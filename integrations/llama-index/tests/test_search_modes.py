"""Queries by words, and by words and embeddings, give the results of the core's store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from llama_index.llms.memograft import MemograftEmbedding, MemograftVectorStore
from memograft.errors import SettingsError
from memograft.passages.vector_store import VectorStore

HYBRID, TEXT, SPARSE = VectorStoreQueryMode.HYBRID, VectorStoreQueryMode.TEXT_SEARCH, VectorStoreQueryMode.SPARSE
TEXTS = ["bees dance", "bees sleep", "cats sleep", "nothing at all"]


@pytest.fixture
def store() -> MemograftVectorStore:
    store = MemograftVectorStore()
    vectors = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]]
    store.add([TextNode(text=t, id_=str(n), embedding=v) for n, (t, v) in enumerate(zip(TEXTS, vectors, strict=True))])
    return store


@pytest.mark.parametrize("mode", [TEXT, SPARSE])
def test_words_are_found_without_an_embedding(store: MemograftVectorStore, mode: VectorStoreQueryMode) -> None:
    assert store.client is not None
    query = VectorStoreQuery(query_str="dancing bees", similarity_top_k=2, mode=mode)
    found = store.query(query)
    hits = store.client.search("dancing bees", 2, mode="text")
    assert (found.ids, found.similarities) == (["0", "1"], [hit.score for hit in hits])
    query.sparse_top_k = 1
    assert store.query(query).ids == ["0"]
    query.node_ids = ["1", "2"]
    assert store.query(query).ids == ["1"]


def test_hybrid_joins_words_and_embedding(store: MemograftVectorStore) -> None:
    query = VectorStoreQuery([0.6, 0.8], query_str="sleeping bees", similarity_top_k=4, mode=HYBRID)
    found = store.query(query)
    assert found.ids is not None
    assert found.ids[0] == "1", "second by embedding, first by words"
    assert found.similarities == pytest.approx(sorted(found.similarities or [], reverse=True))
    assert found.similarities is not None
    assert max(found.similarities) <= 2 / 61
    query.hybrid_top_k = 1
    assert store.query(query).ids == ["1"]


def test_an_index_is_asked_both_ways() -> None:
    context = StorageContext.from_defaults(vector_store=MemograftVectorStore())
    index = VectorStoreIndex.from_documents(
        [Document(text=t) for t in TEXTS], context, embed_model=MemograftEmbedding()
    )
    for mode in ("hybrid", "text_search", "sparse", "default"):
        retriever = index.as_retriever(vector_store_query_mode=mode, similarity_top_k=1)
        assert retriever.retrieve("Who is dancing?" if mode != "default" else "dance")[0].text == "bees dance", mode


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ({"mode": TEXT}, "`query_str` must be the question, got None; pass it to search by words"),
        ({"mode": HYBRID, "query_embedding": [1.0, 0.0]}, "`query_str` must be the question"),
        ({"mode": HYBRID, "query_str": "bees"}, "`query_embedding` must be an embedding, got None"),
        (
            {"mode": HYBRID, "query_str": "bees", "query_embedding": [1.0, 0.0], "alpha": 0.5},
            "`alpha` is not for this store, got 0.5; leave it out, because ranks have no weights",
        ),
        ({"mode": TEXT, "query_str": "bees", "sparse_top_k": 0}, "`sparse_top_k` must be a whole number"),
    ],
)
def test_what_a_mode_needs_is_said(store: MemograftVectorStore, query: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        store.query(VectorStoreQuery(**query))


def test_a_folder_without_vectors_is_searched_by_words_in_every_mode(tmp_path: Path) -> None:
    with VectorStore(path=tmp_path) as core:
        core.add(TEXTS)
    with MemograftVectorStore(tmp_path) as store:
        store.add([TextNode(text="a bergamot", embedding=[1.0])])
        for mode in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR, HYBRID, TEXT):
            query = VectorStoreQuery([1.0], query_str="bergamots", similarity_top_k=1, mode=mode)
            found = store.query(query)
            assert [node.text for node in found.nodes or []] == ["a bergamot"]
        with pytest.raises(SettingsError, match="`query_str` must be the question"):
            store.query(VectorStoreQuery([1.0]))
