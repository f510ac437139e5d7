"""`MemograftRetriever` over Memograft's store, LangChain's in-memory store and Qdrant without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_qdrant import QdrantVectorStore
from memograft.errors import SettingsError, StoreError
from pydantic import ValidationError
from qdrant_client import QdrantClient, models
from vectorstore_doubles import PAGES, QUESTION

from langchain_memograft import MemograftEmbeddings, MemograftRetriever, MemograftVectorStore


def qdrant(embeddings: Embeddings) -> QdrantVectorStore:
    client = QdrantClient(":memory:")
    size = len(embeddings.embed_query("size"))
    client.create_collection("pages", models.VectorParams(size=size, distance=models.Distance.COSINE))
    return QdrantVectorStore(client, "pages", embeddings)


FRENCH: dict[str, Any] = {
    "memograft": {"lang": "fr"},
    "in memory": lambda document: document.metadata["lang"] == "fr",
    "qdrant": models.Filter(
        must=[models.FieldCondition(key="metadata.lang", match=models.MatchValue(value="fr"))],
    ),
}


@pytest.fixture(params=list(FRENCH))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(name: str) -> Iterator[VectorStore]:
    embeddings = MemograftEmbeddings()
    pages = [Document(page.page_content, metadata=page.metadata) for page in PAGES]  # Qdrant's ids are UUIDs
    match name:
        case "memograft":
            with MemograftVectorStore.from_documents(pages, embeddings) as memograft:
                yield memograft
        case "in memory":
            yield InMemoryVectorStore.from_documents(pages, embeddings)
        case "qdrant":
            other = qdrant(embeddings)
            other.add_documents(pages)
            yield other
            other.client.close()


def texts(found: list[Document]) -> list[str]:
    return [document.page_content for document in found]


async def test_any_store_finds_the_same(store: VectorStore, name: str) -> None:
    retriever = MemograftRetriever(vectorstore=store, k=2)
    assert set(texts(retriever.invoke(QUESTION))) == {PAGES[0].page_content, PAGES[1].page_content}
    assert len(retriever.invoke(QUESTION, k=3)) == 3
    assert await retriever.ainvoke(QUESTION, k=3) == retriever.invoke(QUESTION, k=3)
    french = MemograftRetriever(vectorstore=store, filter=FRENCH[name])
    assert texts(french.invoke(QUESTION)) == [PAGES[3].page_content] == texts(await french.ainvoke(QUESTION))
    assert texts(retriever.invoke(QUESTION, filter=FRENCH[name])) == [PAGES[3].page_content]
    assert len(retriever.batch([QUESTION, "wine", "cheese"])) == 3


async def test_scores_in_the_metadata_are_those_of_the_store(store: VectorStore, name: str) -> None:
    plain = MemograftRetriever(vectorstore=store, k=3)
    retriever = MemograftRetriever(vectorstore=store, k=3, with_score=True)
    scored = store.similarity_search_with_score(QUESTION, k=3)
    assert len(scored) == 3
    before = plain.invoke(QUESTION)
    for found in (retriever.invoke(QUESTION), await retriever.ainvoke(QUESTION)):
        assert [document.metadata["score"] for document in found] == pytest.approx([score for _, score in scored])
        for document, (wanted, _) in zip(found, scored, strict=True):
            assert document.page_content == wanted.page_content
            assert {key: value for key, value in document.metadata.items() if key != "score"} == wanted.metadata
    assert plain.invoke(QUESTION) == before, "the store's own documents are unchanged"
    if name == "memograft":
        least = scored[1][1]
        relevant = retriever.invoke(QUESTION, score_threshold=least)
        assert [document.metadata["score"] for document in relevant] == [score for _, score in scored if score >= least]


# Qdrant's cosines round past 1, of which LangChain warns; langchain-qdrant 1.1 does not clip them.
@pytest.mark.filterwarnings("ignore:Relevance scores must be between 0 and 1:UserWarning")
async def test_thresholds(store: VectorStore, name: str) -> None:
    retriever = MemograftRetriever(vectorstore=store, score_threshold=0.99)
    exact = PAGES[2].page_content
    if name == "in memory":
        text = "`score_threshold` needs a store with relevance scores, and InMemoryVectorStore has none; leave it out"
        with pytest.raises(SettingsError, match=text):
            retriever.invoke(exact)
        with pytest.raises(SettingsError, match=text):
            await retriever.ainvoke(exact)
    else:
        assert texts(retriever.invoke(exact)) == [exact] == texts(await retriever.ainvoke(exact))
        assert retriever.invoke("bees dance") == []
        assert len(retriever.invoke(exact, score_threshold=0.0)) == 4
        assert retriever.invoke(exact, score_threshold=0.0, filter=FRENCH[name]) == retriever.invoke(
            exact, score_threshold=0.0, filter=FRENCH[name], k=1
        )


def test_the_threshold_of_our_store_is_a_cosine() -> None:
    with MemograftVectorStore.from_documents(PAGES, MemograftEmbeddings()) as store:
        scores = [score for _, score in store.similarity_search_with_score(QUESTION)]
        between = (scores[1] + scores[2]) / 2
        assert len(MemograftRetriever(vectorstore=store, score_threshold=between).invoke(QUESTION)) == 2


@pytest.mark.parametrize("fields", [{"k": 0}, {"k": "many"}, {"score_threshold": 1.5}, {"vectorstore": "store"}])
def test_fields_are_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        MemograftRetriever(**{"vectorstore": InMemoryVectorStore(MemograftEmbeddings()), **fields})


async def test_arguments_of_a_call_are_checked() -> None:
    retriever = MemograftRetriever(vectorstore=MemograftVectorStore.from_documents(PAGES, MemograftEmbeddings()))
    for k in (0, True, "2"):
        with pytest.raises(SettingsError, match="`k` must be a whole number of at least 1, got"):
            retriever.invoke(QUESTION, k=k)
    with pytest.raises(TypeError, match="unexpected keyword argument 'top_k'"):
        retriever.invoke(QUESTION, top_k=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'top_k'"):
        await retriever.ainvoke(QUESTION, top_k=2)
    with pytest.raises(SettingsError, match="`query` must be a string, got int"):
        retriever.invoke(7)  # type: ignore[arg-type]


class Notes(BaseCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_retriever_start(self, serialized: Any, query: str, *, metadata: Any = None, **kwargs: Any) -> None:
        self.seen.append(("start", query, metadata))

    def on_retriever_end(self, documents: Any, **kwargs: Any) -> None:
        self.seen.append(("end", len(documents)))

    def on_retriever_error(self, error: BaseException, **kwargs: Any) -> None:
        self.seen.append(("error", type(error)))


def test_what_is_told_to_callbacks() -> None:
    notes = Notes()
    store = MemograftVectorStore.from_documents(PAGES, MemograftEmbeddings())
    retriever = MemograftRetriever(vectorstore=store, k=3)
    retriever.invoke(QUESTION, {"callbacks": [notes]})
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        retriever.invoke(QUESTION, {"callbacks": [notes]})
    about = {
        "ls_retriever_name": "memograft",
        "ls_vector_store_provider": "MemograftVectorStore",
        "ls_embedding_provider": "MemograftEmbeddings",
    }
    start, end, _, error = notes.seen
    assert start == ("start", QUESTION, about)
    assert end == ("end", 3)
    assert error[0] == "error"


async def test_in_a_chain_and_for_many_callers_at_once(store: VectorStore) -> None:
    retriever: BaseRetriever = MemograftRetriever(vectorstore=store, k=1)
    chain = retriever | RunnableLambda(lambda found: found[0].page_content)
    questions = [page.page_content for page in PAGES[2:]] * 8
    assert await asyncio.gather(*(chain.ainvoke(question) for question in questions)) == questions
    assert chain.batch(questions) == questions
