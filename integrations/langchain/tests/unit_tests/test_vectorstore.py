"""`MemograftVectorStore`: contents, searches, files and async methods, compared with naive implementations."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blockbuster import BlockBuster, BlockingError
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from memograft.errors import (
    EmbedderMismatchError,
    FilterError,
    SettingsError,
    StoreLockedError,
    StoreReadOnlyError,
)
from memograft.passages.embedders import LexicalEmbedder
from memograft.passages.vector_store import VectorStore as CoreStore
from vectorstore_doubles import PAGES, QUESTION, Numbers

from langchain_memograft import (
    MemograftEmbeddings,
    MemograftVectorStore,
)


def ids_of(found: list[Document]) -> list[str | None]:
    return [document.id for document in found]


@pytest.fixture
def store() -> Iterator[MemograftVectorStore]:
    with MemograftVectorStore.from_documents(PAGES, MemograftEmbeddings()) as store:
        yield store


# contents ---------------------------------------------------------------------------------------------------------


def test_documents_come_back_as_they_were(store: MemograftVectorStore) -> None:
    assert store.get_by_ids(["fr", "nobody", "paris"]) == [PAGES[3], PAGES[0]]
    assert len(store.store) == 4
    assert store.similarity_search(QUESTION, k=1) in ([PAGES[0]], [PAGES[1]])


def test_an_id_that_is_there_is_replaced(store: MemograftVectorStore) -> None:
    assert store.add_documents([Document("Rome is the capital of Italy.")], ids=["paris"]) == ["paris"]
    assert store.get_by_ids(["paris"]) == [Document("Rome is the capital of Italy.", id="paris")]
    assert ids_of(store.similarity_search("capital of Italy", k=1)) == ["paris"]
    assert len(store.store) == 4


def test_the_same_text_twice_is_two_documents_unless_ids_say_otherwise() -> None:
    with MemograftVectorStore() as store:
        first, second = store.add_texts(["same", "same"], [{"n": 1}, {"n": 2}])
        assert first != second
        assert [document.metadata for document in store.get_by_ids([first, second])] == [{"n": 1}, {"n": 2}]
        assert store.add_texts(["other"], ids=[first]) == [first]
        ids = store.add_documents([Document("a", id="given"), Document("b")])
        assert ids[0] == "given"
        assert len(store.store) == 4
        assert len(ids[1]) == 36


def test_delete(store: MemograftVectorStore) -> None:
    assert store.delete(["copy", "nobody"]) is True
    assert store.delete([]) is True
    assert len(store.store) == 3
    assert store.delete(filter={"lang": "fr"}) is True
    assert [passage.id for passage in store.store] == ["paris", "wine"]
    assert store.delete() is True  # as LangChain's base class says: None deletes all
    assert len(store.store) == 0


def test_nothing_in_nothing_out(store: MemograftVectorStore) -> None:
    assert store.add_texts([]) == store.add_documents([]) == store.get_by_ids([]) == []
    with MemograftVectorStore.from_texts([]) as empty:
        assert empty.similarity_search("anything") == empty.max_marginal_relevance_search("anything") == []


async def test_a_document_without_text_is_kept_as_other_stores_do(store: MemograftVectorStore) -> None:
    store.add_texts(["", "France"], ids=["empty", "full"])
    await store.aadd_texts([" "], ids=["blank"])
    assert [document.page_content for document in store.get_by_ids(["empty", "blank"])] == ["", " "]
    assert not {"empty", "blank"} & set(ids_of(store.similarity_search(QUESTION, k=5)))
    assert len(store.similarity_search("", k=7)) == 7


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_ten_thousand_documents(asynchronous: bool) -> None:
    numbers = Numbers()
    documents = [Document(f"{n} text", id=str(n), metadata={"n": n}) for n in range(10_000)]
    if asynchronous:
        store = await MemograftVectorStore.afrom_documents(documents, numbers)
    else:
        store = MemograftVectorStore.from_documents(documents, numbers)
    with store:
        units = numbers.table[:10_000] / np.linalg.norm(numbers.table[:10_000], axis=1, keepdims=True)
        cosines = units @ numbers.table[7] / np.linalg.norm(numbers.table[7])
        found = store.similarity_search_with_score("7 ?", k=10)
        assert ids_of([document for document, _ in found]) == [str(n) for n in np.argsort(-cosines)[:10]]
        assert np.allclose([score for _, score in found], np.sort(cosines)[::-1][:10], atol=1e-6)
        among = [n for n in np.argsort(-cosines) if 500 <= n < 600][:10]
        where = {"n": {"$gte": 500, "$lt": 600}}
        assert ids_of(store.similarity_search("7 ?", k=10, filter=where)) == [str(n) for n in among]
        assert len(store.similarity_search("7 ?", k=1000, filter=where)) == 100


# searches ---------------------------------------------------------------------------------------------------------


def test_filters(store: MemograftVectorStore) -> None:
    def search(where: dict[str, Any]) -> set[str | None]:
        return set(ids_of(store.similarity_search(QUESTION, filter=where)))

    assert search({"lang": "fr"}) == {"fr"}
    assert search({"tags": "b"}) == {"fr"}
    assert search({"year": {"$gte": 2002}}) == {"copy", "wine"}
    assert search({"$or": [{"lang": "fr"}, {"year": 2003}]}) == {"fr", "wine"}
    assert search({"lang": "de"}) == set()
    with pytest.raises(FilterError, match=r"unknown operator, got '\$near'; use one of \$eq"):
        search({"year": {"$near": 2}})
    with pytest.raises(
        FilterError, match=r'a filter must be a mapping .* got <function .*; write it as \{"key": value\}'
    ):
        store.similarity_search(QUESTION, filter=lambda document: True)  # type: ignore[arg-type]


def test_scores_are_cosines_and_relevance_is_never_negative() -> None:
    numbers = Numbers(dimension=2)
    numbers.table[:3] = [[1, 0], [0.6, 0.8], [-2, 0]]
    with MemograftVectorStore.from_texts(["0 same", "1 beside", "2 opposite"], numbers) as store:
        scores = [score for _, score in store.similarity_search_with_score("0 ?")]
        assert scores == pytest.approx([1, 0.6, -1])
        relevance = [score for _, score in store.similarity_search_with_relevance_scores("0 ?")]
        assert relevance == pytest.approx([1, 0.6, 0])
        found = store.similarity_search_with_relevance_scores("0 ?", score_threshold=0.5)
        assert [document.page_content for document, _ in found] == ["0 same", "1 beside"]


def test_a_vector_finds_what_its_text_finds(store: MemograftVectorStore) -> None:
    vector = store.embeddings.embed_query(QUESTION)
    assert store.similarity_search_by_vector(vector, k=3) == store.similarity_search(QUESTION, k=3)
    by_vector = store.similarity_search_with_score_by_vector(vector, 2, {"lang": "en"})
    by_text = store.similarity_search_with_score(QUESTION, 2, {"lang": "en"})
    assert [score for _, score in by_vector] == pytest.approx([score for _, score in by_text])
    assert store.max_marginal_relevance_search_by_vector(vector) == store.max_marginal_relevance_search(QUESTION)


def test_mmr_passes_over_a_near_copy(store: MemograftVectorStore) -> None:
    assert set(ids_of(store.similarity_search(QUESTION, k=2))) == {"paris", "copy"}
    first, second = ids_of(store.max_marginal_relevance_search(QUESTION, k=2, fetch_k=4, lambda_mult=0.3))
    assert first in ("paris", "copy")
    assert second in ("wine", "fr")
    english = store.max_marginal_relevance_search(QUESTION, k=2, fetch_k=4, lambda_mult=0.3, filter={"lang": "en"})
    assert ids_of(english)[1] == "wine"


@pytest.mark.parametrize("kind", ["similarity", "mmr", "similarity_score_threshold"])
async def test_as_retriever(store: MemograftVectorStore, kind: str) -> None:
    options: dict[str, Any] = {"k": 2, "filter": {"lang": "en"}}
    if kind == "similarity_score_threshold":
        options["score_threshold"] = 0.1
    retriever = store.as_retriever(search_type=kind, search_kwargs=options)
    found = retriever.invoke(QUESTION)
    assert len(found) == 2
    assert found == await retriever.ainvoke(QUESTION)
    assert retriever.tags == ["MemograftVectorStore", "MemograftEmbeddings"]


# async ------------------------------------------------------------------------------------------------------------


async def test_async_says_what_sync_says_and_asks_the_embeddings_asynchronously() -> None:
    numbers = Numbers()
    documents = [Document(f"{n} text", id=str(n), metadata={"n": n}) for n in range(50)]
    store = await MemograftVectorStore.afrom_documents(documents, numbers, dimension=16, batch_size=20)
    assert numbers.calls == ["adocuments"] * 3
    where = {"n": {"$gt": 9}}
    vector = numbers.table[3].tolist()
    pairs = [
        (await store.aget_by_ids(["4", "x", "2"]), store.get_by_ids(["4", "x", "2"])),
        (await store.asimilarity_search("3 ?", 5, where), store.similarity_search("3 ?", 5, where)),
        (await store.asimilarity_search_by_vector(vector, 5), store.similarity_search_by_vector(vector, 5)),
        (
            await store.amax_marginal_relevance_search("3 ?", 5, 30, 0.2, where),
            store.max_marginal_relevance_search("3 ?", 5, 30, 0.2, where),
        ),
        (
            await store.amax_marginal_relevance_search_by_vector(vector, 5, filter=where),
            store.max_marginal_relevance_search_by_vector(vector, 5, filter=where),
        ),
    ]
    assert all(mine == other and mine for mine, other in pairs)
    scores = [
        await store.asimilarity_search_with_score("3 ?", 5, where),
        store.similarity_search_with_score("3 ?", 5, where),
        await store.asimilarity_search_with_score_by_vector(vector, 5, where),
        await store.asimilarity_search_with_relevance_scores("3 ?", 5, filter=where),
    ]
    assert [[document.id for document, _ in found] for found in scores] == [ids_of(pairs[1][1])] * 4
    assert await store.adelete(["4", "x"]) is True
    assert await store.aadd_texts(["60 new", "61 new"], [{"n": 60}, {"n": 61}], ids=["a", "b"]) == ["a", "b"]
    assert await store.aadd_documents([Document("62 newer")], ids=["a"]) == ["a"]
    assert await store.aadd_texts([]) == await store.aadd_documents([]) == []
    assert [document.page_content for document in await store.aget_by_ids(["4", "a", "b"])] == ["62 newer", "61 new"]
    await store.aclose()
    assert "documents" not in numbers.calls


async def test_the_event_loop_is_never_blocked(tmp_path: Path, blockbuster: BlockBuster) -> None:
    """Blockbuster raises if the event loop waits for a file, a lock or a sleep."""
    texts = [f"{n} text" for n in range(30)]
    for numbers in (Numbers(), None):
        path = tmp_path / str(numbers is None)
        store = await MemograftVectorStore.afrom_texts(texts, numbers, path=path)
        await store.aadd_documents([Document("31 more", id="more")])
        retriever = store.as_retriever(search_kwargs={"k": 3})
        questions = [retriever.ainvoke(f"{n} ?") for n in range(20)]
        writes = [store.aadd_texts([f"{n} while reading"]) for n in range(40, 45)]
        await asyncio.gather(*questions, *writes)
        assert len(await store.amax_marginal_relevance_search("3 ?", k=2)) == 2
        await store.adelete(["more"])
        with pytest.raises(BlockingError):
            store.similarity_search("3 ?")  # what would be wrong is noticed
        await store.aclose()


async def test_many_writers_and_readers_at_once() -> None:
    store = await MemograftVectorStore.afrom_texts(["0 text"], Numbers())
    writes = [store.aadd_texts([f"{n} text"], [{"n": n}], ids=[str(n)]) for n in range(1, 60)]
    reads = [store.asimilarity_search("3 ?", k=5) for _ in range(60)]
    await asyncio.gather(*(call for pair in zip(writes, reads, strict=False) for call in pair), *reads[59:])
    assert ids_of(await store.asimilarity_search("42 ?", k=1)) == ["42"]
    assert len(store.store) == 60


# files ------------------------------------------------------------------------------------------------------------


def test_a_folder_is_opened_again(tmp_path: Path) -> None:
    fake = DeterministicFakeEmbedding(size=8)
    with MemograftVectorStore.from_documents(PAGES, fake, path=tmp_path) as store:
        before = store.similarity_search_with_score(QUESTION)
        with pytest.raises(StoreLockedError, match="has one already; close it there"):
            MemograftVectorStore(fake, path=tmp_path)
        with MemograftVectorStore(fake, path=tmp_path, read_only=True) as reader:
            store.add_texts(["late"], ids=["late"])
            assert reader.get_by_ids(["late"]) == [Document("late", id="late")]
            with pytest.raises(StoreReadOnlyError, match="open it without to change it"):
                reader.delete(["late"])
            store.delete(["late"])
    with MemograftVectorStore(fake, path=tmp_path) as store:
        assert store.similarity_search_with_score(QUESTION) == before


def test_a_failed_start_leaves_the_folder_free(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(SettingsError, match="must be JSON, got set under 'x'"):
            MemograftVectorStore.from_texts(["a"], metadatas=[{"x": {1}}], path=tmp_path)
    MemograftVectorStore(path=tmp_path).close()


def test_the_folder_of_other_embeddings_is_refused(tmp_path: Path) -> None:
    class Named(DeterministicFakeEmbedding):
        model: str

    MemograftVectorStore.from_texts(["a"], Named(size=8, model="one"), path=tmp_path).close()
    with pytest.raises(
        EmbedderMismatchError, match=r"built with the embedder 'langchain:.*Named:one' \(D=8\), got .*two"
    ):
        MemograftVectorStore(Named(size=8, model="two"), path=tmp_path)
    with pytest.raises(EmbedderMismatchError, match=r"\(D=8\), got .*one' \(D=9\)"):
        MemograftVectorStore(Named(size=9, model="one"), path=tmp_path)
    with pytest.raises(
        SettingsError, match=r"built with embeddings that cannot be created from its files .*pass them as `embedding=`"
    ):
        MemograftVectorStore(path=tmp_path)
    MemograftVectorStore(Named(size=8, model="one"), path=tmp_path).close()


def test_the_folder_of_the_core_is_the_same_folder(tmp_path: Path) -> None:
    with CoreStore(LexicalEmbedder(256), tmp_path) as core:
        core.add([{"text": PAGES[0].page_content, "id": "paris", "metadata": {"n": 1}}])
    with MemograftVectorStore(path=tmp_path) as store:
        assert isinstance(store.embeddings, MemograftEmbeddings)
        assert len(store.embeddings.embed_query("x")) == 256
        store.add_documents(PAGES[2:])
    with CoreStore.open(tmp_path) as core:
        assert [hit.document.id for hit in core.search(QUESTION, k=1)] == ["paris"]
        assert len(core) == 3
    MemograftVectorStore(MemograftEmbeddings(LexicalEmbedder(256)), path=tmp_path).close()


def test_a_known_dimension_asks_for_nothing() -> None:
    numbers = Numbers()
    MemograftVectorStore(numbers, dimension=16).close()
    assert numbers.calls == []
    MemograftVectorStore(numbers).close()
    assert numbers.calls == ["query"]


# indexing ---------------------------------------------------------------------------------------------------------


def sources(*names: str) -> list[Document]:
    return [Document(f"{name} text", metadata={"source": name[0]}) for name in names]


@pytest.mark.parametrize("cleanup", ["incremental", "full", "scoped_full", None])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_indexing(cleanup: Any, asynchronous: bool) -> None:
    manager = InMemoryRecordManager("tests")
    manager.create_schema()
    with MemograftVectorStore() as store:

        async def run(documents: list[Document]) -> dict[str, int]:
            options: dict[str, Any] = {"cleanup": cleanup, "source_id_key": "source", "key_encoder": "sha256"}
            if asynchronous:
                return dict(await aindex(documents, manager, store, **options))
            return dict(index(documents, manager, store, **options))

        first = await run(sources("a1", "a2", "b1"))
        assert first == {"num_added": 3, "num_updated": 0, "num_skipped": 0, "num_deleted": 0}
        again = await run(sources("a1", "a2", "b1"))
        assert (again["num_skipped"], len(store.store)) == (3, 3)
        last = await run(sources("a2", "a3"))  # a1 is gone from its source; b is not looked at
        left = {document.text for document in store.store}
        gone = {"incremental": {"a1"}, "scoped_full": {"a1"}, "full": {"a1", "b1"}, None: set()}[cleanup]
        assert left == {f"{name} text" for name in {"a1", "a2", "a3", "b1"} - gone}
        assert last["num_deleted"] == len(gone)


def test_nothing_is_logged_by_ordinary_work(store: MemograftVectorStore, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        store.similarity_search(QUESTION)
        store.delete(["paris"])
    assert not caplog.records


def test_an_empty_store_is_something() -> None:
    assert MemograftVectorStore()
