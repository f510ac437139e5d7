"""Searches by words, by vectors and by both give the core's results; errors of each mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from memograft.errors import SettingsError
from vectorstore_doubles import PAGES, QUESTION, Numbers

from langchain_memograft import MemograftEmbeddings, MemograftRetriever, MemograftVectorStore

TEXTS = ["0 bees dance", "1 bees sleep", "2 cats sleep", "3 nothing"]


@pytest.mark.parametrize("mode", ["text", "vector", "hybrid", None])
async def test_each_mode_finds_what_the_core_finds(mode: str | None) -> None:
    numbers = Numbers()
    with MemograftVectorStore.from_texts(TEXTS, numbers) as store:
        how: dict[str, Any] = {} if mode is None else {"mode": mode}
        numbers.calls.clear()
        wanted = [(hit.document.text, hit.score) for hit in store.store.search("2 bees", 3, **how)]
        got = store.similarity_search_with_score("2 bees", 3, **how)
        assert [(document.page_content, score) for document, score in got] == wanted
        assert numbers.calls == ([] if mode == "text" else ["query"] * 2)
        numbers.calls.clear()
        assert await store.asimilarity_search_with_score("2 bees", 3, **how) == got
        assert numbers.calls == ([] if mode == "text" else ["aquery"])
        retriever = store.as_retriever(search_kwargs={"k": 3, **how})
        assert retriever.invoke("2 bees") == [document for document, _ in got] == await retriever.ainvoke("2 bees")


async def test_without_embeddings_a_store_is_searched_by_its_words(tmp_path: Path) -> None:
    with MemograftVectorStore.from_documents(PAGES, path=tmp_path) as store:
        assert store.embeddings is None
        assert store.store.embedder.dimension == 0
        assert store.similarity_search("wines", k=1) == [PAGES[2]] == await store.asimilarity_search("wines", k=1)
        assert await store.aadd_texts(["A bergamot is no lemon."], ids=["b"]) == ["b"]
        ((first, score), *_) = store.similarity_search_with_score("bergamots")
        assert first.id == "b"
        assert score > 1
        how: dict[str, Any] = {"k": 2, "fetch_k": 4, "lambda_mult": 0.3}
        varied = store.max_marginal_relevance_search(QUESTION, **how)
        assert varied[0].id == "paris"
        assert varied[1].id in ("wine", "fr")
        assert varied == await store.amax_marginal_relevance_search(QUESTION, **how)
        assert MemograftRetriever(vectorstore=store, k=1).invoke("wines") == [PAGES[2]]
    with MemograftVectorStore(path=tmp_path, read_only=True) as store:
        assert store.embeddings is None
        assert len(store.similarity_search("wine")) == 4


async def test_relevance_is_of_cosines() -> None:
    with MemograftVectorStore.from_documents(PAGES) as store:
        with pytest.raises(SettingsError, match="need cosines, got a store without an embedding; pass an embedding"):
            store.similarity_search_with_relevance_scores(QUESTION)
        with pytest.raises(SettingsError, match="need cosines"):
            await MemograftRetriever(vectorstore=store, score_threshold=0.5).ainvoke(QUESTION)
    with MemograftVectorStore.from_documents(PAGES, MemograftEmbeddings()) as store:
        with pytest.raises(SettingsError, match="got mode='hybrid'"):
            store.similarity_search_with_relevance_scores(QUESTION, mode="hybrid")
        assert store.similarity_search_with_relevance_scores(QUESTION, k=1, mode="vector")[0][1] > 0.5
        with pytest.raises(SettingsError, match='`mode` must be "text", "vector" or "hybrid", got \'both\''):
            store.similarity_search(QUESTION, mode="both")
