"""Stores copied into Qdrant collections and back, with vectors; the same collections in langchain-qdrant."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams

from memograft import Document, LexicalEmbedder, VectorStore
from memograft.errors import (
    EmbedderMismatchError,
    MissingExtraError,
    SettingsError,
    StoreError,
    StoreLockedError,
)
from memograft.passages.embedders import GivenVectors
from memograft.passages.migration import Copied
from memograft.passages.qdrant import embedder_of, from_qdrant, point_id, to_qdrant
from test_cli import run, run_json

UUID = "0b9a3c52-5b0e-4b0c-9d43-0f5f0a0f8a11"
DOCUMENTS = [
    Document("Paris is the capital of France.", "guides/paris.md#0", {"year": 1990, "tags": ["a", "b"], "ok": True}),
    Document("Bergamot is a citrus fruit.", "17", {"nested": {"none": None, "share": 0.1}}),
    Document("The Toll crosses the river Jolm.", UUID),
    Document("...", "only signs", {"what": "a vector of zeros"}),
    Document("日本の首都は東京です。", "首都", {"città": "Tōkyō"}),
]


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    yield client
    client.close()


@pytest.fixture
def store() -> VectorStore:
    store = VectorStore(LexicalEmbedder(64))
    store.add(DOCUMENTS)
    return store


def langchain_embeddings(embedder: LexicalEmbedder):
    from langchain_core.embeddings import Embeddings

    class Lexical(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return embedder.embed_documents(texts).tolist()

        def embed_query(self, text: str) -> list[float]:
            return embedder.embed_query(text).tolist()

    return Lexical()


def assert_equal(one: VectorStore, other: VectorStore) -> None:
    ids = sorted(document.id for document in one)
    assert sorted(document.id for document in other) == ids
    assert other.get(ids) == one.get(ids)
    np.testing.assert_allclose(other.vectors(ids), one.vectors(ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [2, 256])
def test_a_round_trip_changes_nothing(store, client, batch_size):
    assert to_qdrant(store, client, "pages", batch_size=batch_size) == Copied(5, 5)
    back = VectorStore(embedder_of(client, "pages"))
    assert back.embedder.fingerprint == store.embedder.fingerprint
    assert from_qdrant(client, "pages", back, batch_size=batch_size) == Copied(5, 5)
    assert_equal(store, back)


def test_a_round_trip_through_a_folder(store, tmp_path):
    assert to_qdrant(store, tmp_path / "qdrant", "pages") == Copied(5, 5)
    assert to_qdrant(store, str(tmp_path / "qdrant"), "pages") == Copied(5, 0)
    back = VectorStore(LexicalEmbedder(64))
    from_qdrant(tmp_path / "qdrant", "pages", back)
    assert_equal(store, back)


def counted(client: QdrantClient, method: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of points of each call."""
    calls: list[int] = []
    real: Callable[..., object] = getattr(client, method)

    def recorded(collection: str, points: list[PointStruct], **more: object) -> object:
        calls.append(len(points))
        return real(collection, points, **more)

    monkeypatch.setattr(client, method, recorded)
    return calls


def test_a_second_run_writes_only_what_changed(store, client, monkeypatch):
    to_qdrant(store, client, "pages")
    calls = counted(client, "upsert", monkeypatch)
    assert to_qdrant(store, client, "pages") == Copied(5, 0)
    assert calls == []
    store.add([Document("Paris is in France.", "guides/paris.md#0"), Document("New.", "new")])
    store.add([Document(DOCUMENTS[1].text, "17", {"nested": {"none": None, "share": 1}})])
    assert to_qdrant(store, client, "pages") == Copied(6, 3)
    assert calls == [3]
    assert client.count("pages").count == 6
    back = VectorStore(LexicalEmbedder(64))
    from_qdrant(client, "pages", back)
    assert_equal(store, back)
    assert from_qdrant(client, "pages", back) == Copied(6, 0)
    back.add([Document("Something else.", "17")])
    assert from_qdrant(client, "pages", back) == Copied(6, 1)
    assert_equal(store, back)


def test_true_and_1_are_different_metadata(client):
    store = VectorStore(LexicalEmbedder(64))
    store.add([Document("A page.", "a", {"new": 1})])
    to_qdrant(store, client, "pages")
    store.add([Document("A page.", "a", {"new": True})])
    assert to_qdrant(store, client, "pages") == Copied(1, 1)
    assert client.retrieve("pages", [point_id("a")])[0].payload["metadata"] == {"new": True}


def test_changed_vectors_are_written(client):
    store = VectorStore(GivenVectors(2))
    store.add([Document("A page.", "a")], [[1, 0]])
    to_qdrant(store, client, "pages")
    store.add([Document("A page.", "a")], [[0.6, 0.8]])
    assert to_qdrant(store, client, "pages") == Copied(1, 1)
    back = VectorStore(GivenVectors(2))
    from_qdrant(client, "pages", back)
    np.testing.assert_allclose(back.vectors(["a"]), [[0.6, 0.8]], atol=1e-6)


def test_an_interrupted_copy_continues(store, client, monkeypatch):
    real = client.upsert
    monkeypatch.setattr(client, "upsert", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        to_qdrant(store, client, "pages", batch_size=2)
    calls = []

    def once(*args: object, **more: object) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(real(*args, **more))

    monkeypatch.setattr(client, "upsert", once)
    with pytest.raises(KeyboardInterrupt):
        to_qdrant(store, client, "pages", batch_size=2)
    monkeypatch.setattr(client, "upsert", real)
    assert to_qdrant(store, client, "pages", batch_size=2) == Copied(5, 3)
    assert client.count("pages").count == 5


def test_ids_of_points():
    assert point_id("guides/paris.md#0") == point_id("guides/paris.md#0") != point_id("guides/paris.md#1")
    assert uuid.UUID(str(point_id("x"))).version == 5
    assert point_id("0") == 0
    assert point_id(UUID) == UUID
    for other in ("00", "-1", "9" * 20, UUID.upper(), UUID.replace("-", "")):
        assert uuid.UUID(str(point_id(other))).version == 5
    assert len({point_id(id) for id in ("0", "00", UUID, UUID.upper(), UUID.replace("-", ""))}) == 5


def test_langchain_finds_the_same_hits(store, client):
    langchain_qdrant = pytest.importorskip("langchain_qdrant")
    to_qdrant(store, client, "pages")
    theirs = langchain_qdrant.QdrantVectorStore(client, "pages", langchain_embeddings(store.embedder))
    for question in ("What is the capital of France?", "a citrus fruit", "首都"):
        ours = store.search(question, k=3)
        found = theirs.similarity_search_with_score(question, k=3)
        assert [text.page_content for text, _ in found] == [hit.document.text for hit in ours]
        assert [score for _, score in found] == pytest.approx([hit.score for hit in ours], abs=1e-5)
        for (text, _), hit in zip(found, ours, strict=True):
            assert hit.document.metadata.items() <= text.metadata.items()


def test_a_collection_of_langchain_becomes_a_store(client):
    langchain_qdrant = pytest.importorskip("langchain_qdrant")
    embedder = LexicalEmbedder(64)
    theirs = langchain_qdrant.QdrantVectorStore.construct_instance(
        langchain_embeddings(embedder), client_options={"location": ":memory:"}, collection_name="theirs"
    )
    texts = [document.text for document in DOCUMENTS]
    ids = theirs.add_texts(texts, metadatas=[dict(d.metadata) for d in DOCUMENTS])
    ids = [str(uuid.UUID(id)) for id in ids]
    store = VectorStore(embedder)
    with pytest.raises(SettingsError, match=r"does not record the embedder of its vectors.*name the embedder"):
        embedder_of(theirs.client, "theirs")
    assert embedder_of(theirs.client, "theirs", embedder) is embedder
    assert from_qdrant(theirs.client, "theirs", store, batch_size=2) == Copied(5, 5)
    assert store.get(ids) == [Document(d.text, id, d.metadata) for d, id in zip(DOCUMENTS, ids, strict=True)]
    np.testing.assert_allclose(store.vectors(ids), embedder.embed_documents(texts), atol=1e-6)
    assert to_qdrant(store, theirs.client, "theirs") == Copied(5, 0)  # the same points, not copies of them
    store.delete(ids[1:])
    store.add([Document("Changed.", ids[0])])
    assert to_qdrant(store, theirs.client, "theirs") == Copied(1, 1)
    assert theirs.client.count("theirs").count == 5
    with pytest.raises(SettingsError, match="have 64 numbers each, got an embedder with 128"):
        from_qdrant(theirs.client, "theirs", VectorStore(LexicalEmbedder(128)))
    theirs.client.close()


def made(client: QdrantClient, name: str, size: int = 64, distance: Distance = Distance.COSINE) -> str:
    client.create_collection(name, vectors_config=VectorParams(size=size, distance=distance))
    return name


def test_other_collections_are_refused(store, client):
    wide, dot = made(client, "wide", 128), made(client, "dot", distance=Distance.DOT)
    client.create_collection("named", vectors_config={"image": VectorParams(size=64, distance=Distance.COSINE)})
    client.create_collection("sparse", vectors_config={})
    given = VectorStore(GivenVectors(64))
    to_qdrant(store, client, "lexical")
    for copy in (to_qdrant, lambda store, client, name: from_qdrant(client, name, store)):
        with pytest.raises(SettingsError, match=r"'wide' have 128 numbers each, got an embedder with 64 \(lexical-1"):
            copy(store, client, wide)
        with pytest.raises(SettingsError, match="'dot' must compare by cosine, as a store does, got Dot"):
            copy(store, client, dot)
        with pytest.raises(SettingsError, match=r"must have an unnamed vector, got \['image'\]; use another one"):
            copy(store, client, "named")
        with pytest.raises(SettingsError, match="must have"):
            copy(store, client, "sparse")
        with pytest.raises(EmbedderMismatchError, match="of the embedder 'lexical-1-64', got 'given-64'; use that"):
            copy(given, client, "lexical")
    assert len(given) == 0
    with pytest.raises(
        SettingsError, match="only a store with vectors can be copied there, got one without an embedder; make"
    ):
        to_qdrant(VectorStore(), client, "words")
    with pytest.raises(StoreError, match=r"no collection 'page', got \['dot', 'lexical', .*\]; check the name"):
        from_qdrant(client, "page", store)
    with pytest.raises(SettingsError, match="`batch_size` must be a whole number of at least 1, got 0; 256 is usual"):
        to_qdrant(store, client, "lexical", batch_size=0)


def test_points_of_another_form_are_refused(store, client):
    made(client, "other")
    client.upsert("other", [PointStruct(id=3, vector=[1.0] * 64, payload={"text": "A page."})])
    with pytest.raises(SettingsError, match=r"text under 'page_content'.* got the keys \['text'\] in the point 3"):
        from_qdrant(client, "other", store)
    assert len(store) == 5


def test_places_that_cannot_be_used(store, tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="nothing is not a folder of Qdrant's local mode; check the path"):
        from_qdrant(tmp_path / "nothing", "pages", store)
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file cannot be used by Qdrant"):
        to_qdrant(store, tmp_path / "file", "pages")
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(MissingExtraError, match=r'run pip install "memograft\[qdrant\]"'):
        to_qdrant(store, tmp_path / "qdrant", "pages")


def test_a_server_that_is_not_there(store):
    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:9 did not do as asked .*; check its address, key"):
        to_qdrant(store, "http://127.0.0.1:9", "pages")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # qdrant-client leaves its lock open
def test_a_folder_that_is_open_elsewhere(store, tmp_path):
    other = QdrantClient(path=str(tmp_path / "qdrant"))
    with pytest.raises(StoreLockedError, match=r"another Qdrant client has .*qdrant open .*; close it first"):
        to_qdrant(store, tmp_path / "qdrant", "pages")
    other.close()


def test_the_command_copies_there_and_back(tmp_path):
    place, folder, back = tmp_path / "qdrant", tmp_path / "store", tmp_path / "back"
    with VectorStore(LexicalEmbedder(64), folder) as store:
        store.add(DOCUMENTS)
    assert run_json("migrate", "to-qdrant", place, "pages", "--store", folder) == {"passages": 5, "written": 5}
    said = run("migrate", "to-qdrant", place, "pages", "--store", folder).stdout
    assert said == "5 passages: 0 written to pages, 5 there already\n"
    assert run_json("migrate", "from-qdrant", place, "pages", "--store", back) == {"passages": 5, "written": 5}
    assert run_json("migrate", "from-qdrant", place, "pages", "--store", back) == {"passages": 5, "written": 0}
    with VectorStore.open(folder) as one, VectorStore.open(back) as other:
        assert_equal(one, other)
    refused = run_json(
        "migrate", "from-qdrant", place, "pages", "--store", tmp_path / "new", "--embedder", "lexical", code=1
    )
    assert "have 64 numbers each, got an embedder with 1024" in refused["error"]
    assert not (tmp_path / "new").exists()
    refused = run_json("migrate", "to-qdrant", place, "pages", "--store", tmp_path / "new", code=1)
    assert "holds no store" in refused["error"]
