"""Errors of `MemograftVectorStore` name the value, and do not change the store."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from memograft.errors import SettingsError, StoreError
from memograft.passages.embedders import LexicalEmbedder
from vectorstore_doubles import PAGES, QUESTION, Numbers

from langchain_memograft import MemograftEmbeddings, MemograftVectorStore


@pytest.fixture
def store() -> Iterator[MemograftVectorStore]:
    with MemograftVectorStore.from_documents(PAGES, MemograftEmbeddings()) as store:
        yield store


@pytest.mark.parametrize(
    ("method", "arguments", "text"),
    [
        ("add_texts", ["one string"], r"`texts` must be a list, got one str; write texts=\[...\]"),
        ("add_texts", [7], "`texts` must be a list, got one int"),
        ("add_texts", [[7]], r"texts\[0\] must be a string, got int; convert it first"),
        (
            "add_texts",
            [["a", "\ud800"]],
            r"the text of documents\[1\] .* must be Unicode text, and has lone surrogates",
        ),
        ("add_texts", [["a"], [{"x": {1, 2}}]], "must be JSON, got set under 'x' .* turn it into a string"),
        ("add_texts", [["a"], [{"x": object()}]], "must be JSON, got object under 'x'"),
        ("add_texts", [["a"], [{"x": math.nan}]], "must be JSON, got float under 'x'"),
        ("add_texts", [["a"], [{7: "x"}]], "metadata keys of .* must be strings, got 7"),
        ("add_texts", [["a"], ["x"]], "must be a mapping, got 'x'; use a dict"),
        ("add_texts", [["a"], [{}, {}]], "`metadatas` must be as many as the texts, got 2 for 1; leave it out"),
        ("add_texts", [["a"], {"x": 1, "y": 2}], "`metadatas` must be as many as the texts, got 2 for 1"),
        ("add_documents", [["text"]], r"documents\[0\] must be a LangChain Document, got str; add_texts takes strings"),
        ("add_documents", [PAGES[0]], r"`documents` must be a list, got one Document; write documents=\[...\]"),
        ("add_documents", [[PAGES[0], None]], r"documents\[1\] must be a LangChain Document, got NoneType"),
        ("similarity_search", [7], "`query` must be a string, got int; search_by_vector takes vectors"),
        ("similarity_search", ["a", 0], "`k` must be a whole number of at least 1, got 0"),
        ("max_marginal_relevance_search", ["a", 4, 20, 2], "`lambda_mult` must be between 0 and 1, got 2"),
        ("max_marginal_relevance_search", [["a"]], "`query` must be a string, got list"),
        ("similarity_search_by_vector", [[1.0]], r"`vector` must have the shape \(1024,\), got \(1,\)"),
        ("get_by_ids", ["paris"], "`ids` must be a list of strings, got 'paris'"),
        ("delete", ["paris"], "`ids` must be a list of strings, got 'paris'"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    store: MemograftVectorStore, method: str, arguments: list[Any], text: str
) -> None:
    with pytest.raises(SettingsError, match=text):
        getattr(store, method)(*arguments)
    with pytest.raises(SettingsError, match=text):
        await getattr(store, f"a{method}")(*arguments)
    assert len(store.store) == 4


async def test_unknown_arguments_are_refused(store: MemograftVectorStore) -> None:
    for method, arguments in {
        "similarity_search": [QUESTION],
        "similarity_search_with_score": [QUESTION],
        "similarity_search_by_vector": [[1.0] * 1024],
        "max_marginal_relevance_search": [QUESTION],
        "add_texts": [["a"]],
        "add_documents": [[]],
        "delete": [[]],
    }.items():
        with pytest.raises(TypeError, match="takes no argument `fetchk` here; check its name, or leave it out"):
            getattr(store, method)(*arguments, fetchk=3)
        with pytest.raises(TypeError, match="takes no argument `fetchk` here"):
            await getattr(store, f"a{method}")(*arguments, fetchk=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'pth'"):
        MemograftVectorStore(pth="x")  # type: ignore[call-arg]


def test_ids_of_another_number_or_both_ways_to_delete(store: MemograftVectorStore) -> None:
    with pytest.raises(SettingsError, match="`ids` must be as many as the texts, got 1 for 2"):
        store.add_texts(["a", "b"], ids=["x"])
    with pytest.raises(SettingsError, match="`ids` must be a list, got one str"):
        store.add_documents(PAGES[:1], ids="paris")
    with pytest.raises(SettingsError, match="takes either `ids` or `where`, got neither"):
        store.delete(filter=None)
    with pytest.raises(SettingsError, match="takes either `ids` or `where`, got both"):
        store.delete(["paris"], filter={})
    with pytest.raises(SettingsError, match="`embedding` must be LangChain embeddings, got LexicalEmbedder; wrap an"):
        MemograftVectorStore(LexicalEmbedder())  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="`dimension` must be a whole number of at least 1, got 0; leave it out"):
        MemograftVectorStore(Numbers(), dimension=0)


@pytest.mark.parametrize(
    ("vectors", "text"),
    [
        ([[1.0, 2.0], [1.0]], "Broken' must return numbers in rows of one length, got something else"),
        ([["x", "y"], [1.0, 2.0]], "Broken' must return numbers in rows of one length, got something else"),
        ([[1.0, 2.0]], r"must return the shape \(2, 2\), got \(1, 2\)"),
        ([[1.0, 2.0], [math.nan, 1.0]], "must return finite numbers, got NaN or infinity in row 1"),
    ],
)
async def test_broken_embeddings_change_nothing(vectors: Any, text: str) -> None:
    class Broken(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return vectors  # type: ignore[no-any-return]

        def embed_query(self, text: str) -> list[float]:
            return [1.0, 2.0]

    with MemograftVectorStore(Broken()) as store:
        with pytest.raises(SettingsError, match=text):
            store.add_texts(["a", "b"])
        with pytest.raises(SettingsError, match=text):
            await store.aadd_texts(["a", "b"])
        assert len(store.store) == 0


async def test_an_error_of_the_embeddings_reaches_the_caller() -> None:
    class Down(DeterministicFakeEmbedding):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            raise ConnectionError("no embeddings today")

    with MemograftVectorStore(Down(size=4)) as store:
        with pytest.raises(ConnectionError, match="no embeddings today"):
            store.add_texts(["a"])
        with pytest.raises(ConnectionError, match="no embeddings today"):
            await store.aadd_texts(["a"])


async def test_a_closed_store_says_so(store: MemograftVectorStore) -> None:
    store.close()
    store.close()
    for call in (store.similarity_search, store.max_marginal_relevance_search):
        with pytest.raises(StoreError, match="the store in memory is closed; open it again"):
            call(QUESTION)
    with pytest.raises(StoreError, match="is closed"):
        await store.asimilarity_search(QUESTION)
    with pytest.raises(StoreError, match="is closed"):
        store.add_texts(["a"])
