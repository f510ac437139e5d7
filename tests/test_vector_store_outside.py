"""Embedding models, texts and FAISS files that come from outside: what a store takes, and what is refused by name."""

from __future__ import annotations

import asyncio
import math
import pickle
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from memograft import Document, VectorStore
from memograft.errors import EmbedderMismatchError, SettingsError, StoreCorruptError, StoreError
from memograft.passages.checks import checked_items, checked_list
from memograft.passages.copying import copy_store
from memograft.passages.embedders import GivenVectors, LexicalEmbedder
from memograft.passages.foreign import FaissVectors, plain_document
from memograft.passages.incoming import documents_of
from memograft.passages.outside import OutsideEmbedder, aembedded, aembedded_query, model_name
from memograft.storage.plain_data import Record, Refused, plain_data

TEXTS = ["Paris is the capital of France.", "Bergamot is a citrus fruit."]


def rows(texts: list[str]) -> list[list[float]]:
    return [[2.0, float(len(text))] for text in texts]


def outside(name: str = "Lengths", dimension: int | None = None) -> OutsideEmbedder:
    return OutsideEmbedder("library", name, rows, lambda text: rows([text])[0], dimension)


async def arows(texts: list[str]) -> list[list[float]]:
    await asyncio.sleep(0)
    return rows(texts)


async def arow(text: str) -> list[float]:
    return (await arows([text]))[0]


def test_a_store_keeps_the_name_of_a_model_from_outside(tmp_path: Path) -> None:
    with VectorStore(outside(), tmp_path) as store:
        store.add(TEXTS)
        assert store.search(TEXTS[1], k=1)[0].score == pytest.approx(1)
        assert (store.embedder.dimension, store.embedder.fingerprint) == (2, "library:Lengths")
    with pytest.raises(
        EmbedderMismatchError, match=r"built with the embedder 'library:Lengths' .* got 'library:Other'"
    ):
        VectorStore(outside("Other"), tmp_path)
    with pytest.raises(SettingsError, match="`dimension` must be a whole number of at least 1, got 0; leave it out"):
        outside(dimension=0)


def test_awaited_vectors_are_those_of_a_call() -> None:
    embedder = outside()
    vectors = asyncio.run(aembedded(arows, embedder, TEXTS, 1))
    with VectorStore(embedder) as store:
        assert np.allclose(vectors, store.vectors(store.add(TEXTS)))
    assert np.allclose(asyncio.run(aembedded_query(arow, embedder, TEXTS[0])), vectors[0])
    assert asyncio.run(aembedded(arows, embedder, [], 1)).shape == (0, 2)
    with pytest.raises(SettingsError, match=r"'library:Lengths' must return the shape \(3,\), got \(2,\)"):
        asyncio.run(aembedded_query(arow, outside(dimension=3), "a"))
    with pytest.raises(SettingsError, match="`query` must be a string, got int"):
        asyncio.run(aembedded_query(arow, embedder, 7))  # type: ignore[arg-type]


def test_the_name_of_a_model() -> None:
    class Model:
        model = 7
        model_name = "small"

    assert model_name(Model()).endswith("Model:small")
    assert model_name(LexicalEmbedder(64)) == "LexicalEmbedder"


def test_documents_of_texts() -> None:
    first, second = documents_of(TEXTS, [None, {"n": 1}], [None, "b"])
    assert (first.text, dict(first.metadata), len(first.id)) == (TEXTS[0], {}, 36)
    assert second == Document(TEXTS[1], "b", {"n": 1})
    assert documents_of(TEXTS)[0].id != documents_of(TEXTS)[0].id  # random


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["one"], r"`texts` must be a list, got one str; write texts=\[...\]"),
        ([7], "`texts` must be a list, got one int"),
        ([["a", 7]], r"texts\[1\] must be a string, got int; convert it first"),
        ([["a"], [{}, {}]], "`metadatas` must be as many as the texts, got 2 for 1; leave it out"),
        ([["a"], None, "a"], r"`ids` must be a list, got one str; write ids=\[...\]"),
        ([["a"], None, ["b", "c"]], "`ids` must be as many as the texts, got 2 for 1"),
    ],
)
def test_texts_that_cannot_become_documents(arguments: list[Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        documents_of(*arguments)


def test_one_item_is_no_list() -> None:
    with pytest.raises(SettingsError, match=r"`pages` must be a list, got one Document; write pages=\[...\]"):
        checked_items("pages", Document("a"), Document)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"pages\[0\] must be a page, got str; wrap it"):
        checked_items("pages", ["a"], Document, "a page", "wrap it")  # type: ignore[list-item]
    assert checked_list("k", (n for n in range(3)), 3) == [0, 1, 2]


def test_the_vectors_of_a_faiss_file(tmp_path: Path) -> None:
    vectors = np.array([[3, 4], [0, 2]], np.float32)
    index = faiss.IndexFlatL2(2)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "index"))
    found = FaissVectors(tmp_path / "index")
    assert (found.count, found.dimension) == (2, 2)
    with VectorStore(GivenVectors(2)) as store:
        found.add_to(store, [Document(text) for text in TEXTS], "Given")
        assert store.search_by_vector([0.6, 0.8], k=1)[0].score == pytest.approx(1)
        copy_store(store, tmp_path / "copy")
        store.delete([Document(TEXTS[0]).id])
        copy_store(store, tmp_path / "other")
        copy_store(store, tmp_path / "copy")  # and what was deleted is deleted there
    for folder in ("copy", "other"):
        with VectorStore.open(tmp_path / folder, read_only=True) as copy:
            assert [page.text for page in copy] == TEXTS[1:]
    with (
        VectorStore() as store,
        pytest.raises(SettingsError, match="have 2 numbers each, got None with 0; pass the emb"),
    ):
        found.add_to(store, [], "None")


def test_a_faiss_file_that_gives_no_vectors(tmp_path: Path) -> None:
    (tmp_path / "index").write_bytes(b"no index")
    with pytest.raises(StoreCorruptError, match=r"FAISS cannot read .*index .*; restore it from a backup"):
        FaissVectors(tmp_path / "index")
    index = faiss.IndexIDMap(faiss.IndexFlatL2(2))
    index.add_with_ids(np.ones((1, 2), np.float32), np.array([7]))
    faiss.write_index(index, str(tmp_path / "index"))
    with pytest.raises(StoreError, match="is a IndexIDMap, which does not give its vectors back"):
        FaissVectors(tmp_path / "index")


def test_metadata_becomes_json_of_its_own() -> None:
    inner = [1, ("a", None)]
    page = plain_document("text", "id", {"x": inner, "y": inner})
    assert page.metadata == {"x": [1, ["a", None]], "y": [1, ["a", None]]}
    assert page.metadata["x"] is not page.metadata["y"]
    for metadata, text in (
        ({"x": math.inf}, "holds inf, which is not JSON"),
        ({"x": {1}}, "holds set, which is not JSON"),
        ([1], "is a list, which is no dict"),
        ({7: "x"}, "has the key 7, which is no string"),
        ({"x": [0] * 100_000}, "more than 100000 values"),
    ):
        with pytest.raises(ValueError, match=text):
            plain_document("text", "id", metadata)


class Thing:
    """Stands in a pickle under its name."""

    def __init__(self) -> None:
        self.n = 1


def test_a_pickle_is_read_without_unpickling() -> None:
    data = pickle.dumps({"a": [Thing(), (1, 2.5, None)]}, 4)
    read = plain_data(data, {(__name__, "Thing"): "thing"})
    match read:
        case {"a": [Record(kind="thing", state={"n": 1}), (1, 2.5, None)]}:
            pass
        case _:
            pytest.fail(f"something else was read: {read!r}")
    with pytest.raises(Refused, match=r"names .*\.Thing, which is no plain data"):
        plain_data(data, {})
    with pytest.raises(Refused, match="is damaged"):
        plain_data(data[:-5], {(__name__, "Thing"): "thing"})
