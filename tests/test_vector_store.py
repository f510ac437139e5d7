"""The vector store against naive versions: a dict for its contents, NumPy for its search."""

from __future__ import annotations

import random
import threading

import faiss
import numpy as np
import pytest

from gates import until
from memograft.documents import Document
from memograft.errors import SettingsError
from memograft.passages.embedders import LexicalEmbedder
from memograft.passages.index import VectorIndex
from memograft.passages.search import mmr_order
from memograft.passages.vector_store import IndexSettings, VectorStore
from memograft.storage.locks import ReadWriteLock
from store_doubles import NumberEmbedder, brute_force, found, numbered

# contents ---------------------------------------------------------------------------------------------------------


def test_add_get_and_search_in_memory() -> None:
    store = VectorStore()
    ids = store.add([Document("Paris is the capital of France.", "fr", {"year": 1}), "Bergamot is a citrus fruit."])
    assert ids == ["fr", Document("Bergamot is a citrus fruit.").id]
    assert store.get(["nope", ids[1], "fr"])[1] == Document("Paris is the capital of France.", "fr", {"year": 1})
    best = store.search("What is the capital of France?", k=1)
    assert best[0].document.id == "fr"
    assert best[0].score > 0
    assert len(store) == 2
    assert [document.id for document in store] == ids


def test_the_same_text_scores_one_and_never_more() -> None:
    store = VectorStore(LexicalEmbedder())
    store.add([f"sentence about thing{i} and other{i}" for i in range(50)])
    for document in store:
        hit = store.search(document.text, k=1)[0]
        assert hit.document == document
        assert 0.9999 < hit.score <= 1


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf", "ivfpq"])
def test_random_writes_agree_with_a_dict(tmp_path, kind) -> None:
    """Deleting and adding must never return a wrong document, whatever the index does with dead vectors."""
    rng = random.Random(kind)
    times = 20 if kind == "ivfpq" else 1  # it is trained from 256 vectors on
    embedder = NumberEmbedder(rows=60 * times)
    settings = IndexSettings(kind, ivf_train_at=20 if times == 1 else 256, nprobe=2)
    model: dict[str, Document] = {}
    store = VectorStore(embedder, tmp_path / "store", index=settings)
    exact = 0
    for step in range(150):
        action = rng.random()
        if action < 0.6:
            batch = [
                Document(f"{rng.randrange(60 * times)} v{step}", f"id{rng.randrange(40 * times)}", {"step": step})
                for _ in range(rng.randrange(1, 6 * times))
            ]
            assert store.add(batch) == [document.id for document in batch]
            model.update({document.id: document for document in batch})
        elif action < 0.8:
            ids = [f"id{rng.randrange(50 * times)}" for _ in range(3 * times)]
            assert store.delete(ids) == len(set(ids) & set(model))
            for id in ids:
                model.pop(id, None)
        elif action < 0.85:
            limit = rng.randrange(step + 1)
            gone = {id for id, document in model.items() if document.metadata["step"] < limit}
            assert store.delete(where={"step": {"$lt": limit}}) == len(gone)
            model = {id: document for id, document in model.items() if id not in gone}
        elif action < 0.9:
            store.compact()
        elif action < 0.95:
            store.close()
            store = VectorStore(embedder, tmp_path / "store", index=settings)
        assert len(store) == len(model)
        exact += store._cache.index.is_exact
        hits = store.search(f"{rng.randrange(60 * times)}", k=100 * times)
        assert {hit.document.id: hit.document for hit in hits} == model
        assert len(hits) == len(model)
    assert {document.id: document for document in store} == model
    assert exact == 150 if kind == "flat" else exact < 100
    store.close()


def test_of_one_id_twice_in_a_call_the_last_stays() -> None:
    store = VectorStore()
    assert store.add([Document("one", "a"), Document("two", "b"), Document("three", "a")]) == ["a", "b", "a"]
    assert [document.text for document in store.get(["a", "b"])] == ["three", "two"]


def test_empty_requests_do_nothing() -> None:
    store = VectorStore()
    assert store.add([]) == []
    assert store.delete([]) == 0
    assert store.get([]) == []
    assert store.search("anything") == []
    assert store.mmr("anything") == []
    assert store.search("anything", where={"a": 1}) == []


# search -----------------------------------------------------------------------------------------------------------


def test_flat_search_is_brute_force() -> None:
    embedder = NumberEmbedder()
    store = VectorStore(embedder)
    store.add(numbered(range(500)))
    store.delete([f"id{n}" for n in range(0, 500, 3)])
    alive = [n for n in range(500) if n % 3]
    rng = np.random.default_rng(1)
    for k in (1, 7, 1000):
        query = rng.normal(size=16)
        assert found(store.search_by_vector(query, k)) == brute_force(embedder, alive, query, k)
        few = [n for n in alive if n < 20]
        assert found(store.search_by_vector(query, k, {"n": {"$lt": 20}})) == brute_force(embedder, few, query, k)


def test_mmr_matches_its_definition() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(30, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query = vectors[0]
    relevance = vectors @ query
    for weight in (0.0, 0.3, 1.0):
        taken: list[int] = []
        for _ in range(6):
            rest = [i for i in range(30) if i not in taken]
            gains = [
                weight * relevance[i] - (1 - weight) * max((vectors[i] @ vectors[j] for j in taken), default=0)
                for i in rest
            ]
            taken.append(rest[int(np.argmax(gains))])
        assert mmr_order(relevance, vectors.astype(np.float32), 6, weight) == taken


def test_mmr_passes_over_a_near_copy() -> None:
    store = VectorStore()
    store.add(
        [
            Document("The capital of France is Paris.", "a"),
            Document("The capital of France is Paris!", "copy"),
            Document("France exports wine and cheese.", "b"),
            Document("Bees dance to tell where flowers are.", "c"),
        ]
    )
    assert {hit.document.id for hit in store.search("capital of France", k=2)} == {"a", "copy"}
    picked = [hit.document.id for hit in store.mmr("capital of France", k=2, fetch_k=3)]
    assert picked[0] in ("a", "copy")
    assert picked[1] == "b"


def test_vectors_that_are_there_are_not_made_again() -> None:
    embedder = NumberEmbedder()
    store = VectorStore(embedder)
    assert store.embedder is embedder
    documents = [Document("anything", f"id{n}", {"n": n}) for n in range(20)]  # the embedder does not support this text
    ids = store.add([*documents[:5], *documents], [*embedder.table[100:105], *embedder.table[:20]])
    assert len(ids) == 25
    assert found(store.search("7", k=3)) == brute_force(embedder, list(range(20)), embedder.table[7], 3)


def test_mmr_by_vector_is_mmr() -> None:
    embedder = NumberEmbedder()
    store = VectorStore(embedder)
    store.add(numbered(range(50)))
    where = {"n": {"$gte": 10}}
    by_text = found(store.mmr("7", k=5, fetch_k=30, lambda_mult=0.2, where=where))
    assert found(store.mmr_by_vector(3 * embedder.table[7], 5, 30, 0.2, where)) == by_text


# threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_readers_during_a_writer(tmp_path, kind) -> None:
    """Each passage has its id in text and metadata; a reader must never see a mismatch or a part of a batch."""
    embedder = NumberEmbedder(rows=200)
    store = VectorStore(embedder, tmp_path / "store", index=kind)
    store.add(numbered(range(100), batch=0))
    stop = threading.Event()
    problems: list[str] = []

    def read(seed: int) -> None:
        rng = random.Random(seed)
        try:
            while not stop.is_set():
                for hit in store.search(str(rng.randrange(200)), k=10, where=rng.choice([None, {"n": {"$gte": 0}}])):
                    document = hit.document
                    if document.id != f"id{document.metadata['n']}" or not document.text.startswith(
                        f"{document.id[2:]} "
                    ):
                        problems.append(f"mixed up: {document}")
                if store.count() % 100 or len(store.search("1", k=1000)) % 100:
                    problems.append("half a batch was visible")
        except Exception as error:
            problems.append(repr(error))

    readers = [threading.Thread(target=read, args=[seed]) for seed in range(4)]
    for reader in readers:
        reader.start()
    for batch in range(1, 12):
        store.add(numbered(range(200), batch=batch))
        store.delete([f"id{n}" for n in range(100)])
        if batch % 4 == 0:
            store.compact()
    stop.set()
    for reader in readers:
        reader.join(20)
    assert not problems, problems[:3]
    assert len(store) == 100
    store.close()


def test_a_write_that_the_index_could_not_take_is_caught_up(monkeypatch) -> None:
    """FAISS runs out of memory after the commit: the write is acknowledged, and the next search finds it."""
    store = VectorStore(NumberEmbedder())
    store.add(numbered([1, 2]))
    with monkeypatch.context() as patch:
        patch.setattr(VectorIndex, "add", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
        assert store.add([Document("3 text", "id1", {"n": 3})]) == ["id1"]
    assert sorted(found(store.search("3", k=10))) == [2, 3]


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_an_index_that_was_cut_off_in_the_middle_of_a_write_is_built_anew(tmp_path, monkeypatch, kind) -> None:
    """FAISS handles signals too and may then have vectors without ids, which would shift all later ones."""

    def cut_off(index, vectors, ids):
        index.index.add(vectors)
        raise RuntimeError("computation interrupted")

    def check(store: VectorStore, most: int) -> None:
        assert [found(store.search(str(n), k=1)) for n in range(1, most + 1)] == [[n] for n in range(1, most + 1)]

    with VectorStore(NumberEmbedder(), tmp_path, index=kind) as store:
        store.add(numbered([1, 2]))
        with monkeypatch.context() as patch:
            patch.setattr(faiss.IndexIDMap, "add_with_ids", cut_off)
            store.add(numbered([3, 4]))
        store.add(numbered([5, 6]))
        check(store, 6)
        with monkeypatch.context() as patch:
            patch.setattr(faiss.IndexIDMap, "add_with_ids", cut_off)
            store.add(numbered([7]))
    with VectorStore(NumberEmbedder(), tmp_path) as store:
        check(store, 7)


@pytest.mark.parametrize("read", [lambda s: s.search("1"), lambda s: s.get(["id1"]), len, lambda s: next(iter(s))])
def test_reading_waits_for_a_write_on_its_way(read) -> None:
    """FAISS must not be searched while it changes, and the connection would show uncommitted rows."""
    store = VectorStore(NumberEmbedder())
    store.add(numbered([1]))
    reader = threading.Thread(target=read, args=[store])
    with store._lock.writing():
        reader.start()
        reader.join(0.05)
        assert reader.is_alive()
    reader.join(5)
    assert not reader.is_alive()


def test_a_waiting_writer_goes_before_new_readers() -> None:
    lock = ReadWriteLock()
    order: list[str] = []
    first = lock.reading()
    first.__enter__()

    def write() -> None:
        with lock.writing():
            order.append("writer")

    def writer_waits() -> bool:
        if free := lock._gate.acquire(blocking=False):
            lock._gate.release()
        return not free

    def read() -> None:
        with lock.reading():
            order.append("reader")

    writer = threading.Thread(target=write)
    writer.start()
    until(writer_waits)
    reader = threading.Thread(target=read)
    reader.start()
    reader.join(0.05)
    assert order == []
    first.__exit__(None, None, None)
    writer.join(5)
    reader.join(5)
    assert order == ["writer", "reader"]


def test_find_and_vectors() -> None:
    embedder = NumberEmbedder()
    store = VectorStore(embedder)
    store.add(numbered(range(600)))
    store.delete(ids=["id7"])
    assert [document.metadata["n"] for document in store.find({"n": {"$lt": 10}})] == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert len(list(store.find())) == len(list(store)) == 599
    vectors = store.vectors(["id9", "id7", "id3", "id9"])
    expected = embedder.table[[9, 3, 9]]
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-5)
    assert store.vectors(["nobody"]).shape[0] == 0
    assert len(VectorStore().vectors([])) == 0


def test_a_passage_without_text_comes_with_its_vector() -> None:
    store = VectorStore(LexicalEmbedder(64))
    store.add([Document("", "blank")], vectors=np.ones((1, 64)))
    assert store.search("anything")[0].document == Document("", "blank")
    with pytest.raises(SettingsError, match=r"documents\[0\] \(id 'blank'\) has no text, got ''; leave empty"):
        store.add([Document("", "blank")])


def test_filters_that_let_nothing_through_are_forgotten_too(monkeypatch) -> None:
    monkeypatch.setattr("memograft.passages.filtered._MOST", 2000)
    store = VectorStore(NumberEmbedder())
    store.add(numbered(range(10)))
    for n in range(100):
        assert store.search("1 text", where={"n": 1000 + n}) == []
    assert len(store._search._filtered._known) < 30
    store.search("1 text", where={"$id": [f"nobody {n}" for n in range(10_000)]})
    assert len(store._search._filtered._known) == 1
