"""Invalid input that a vector store refuses, naming it, before anything is written."""

from __future__ import annotations

import math

import numpy as np
import pytest

from memograft.documents import Document
from memograft.errors import (
    SettingsError,
)
from memograft.passages.embedders import LexicalEmbedder
from memograft.passages.vector_store import IndexSettings, VectorStore
from store_doubles import NumberEmbedder, numbered

# bad input --------------------------------------------------------------------------------------------------------


class BrokenEmbedder(NumberEmbedder):
    """Returns `result` for every batch that contains number 3."""

    result: object = None

    def embed_documents(self, texts):
        return self.result if any(text.startswith("3 ") for text in texts) else super().embed_documents(texts)


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (
            np.full((1, 16), np.nan),
            r"embedder 'number-16' must return finite numbers, got NaN or infinity in row 0",
        ),
        (np.full((1, 16), 1e300), "must return finite numbers"),
        (np.zeros((1, 7)), r"must return the shape \(1, 16\), got \(1, 7\); use the embedder of the store"),
        (np.zeros(16), r"must return the shape \(1, 16\), got \(16,\)"),
        ([[1.0] * 16, [1.0]], "'number-16' must return numbers in rows of one length, got something else .*; look at"),
        ([["x"] * 16], "must return numbers in rows of one length"),
    ],
)
def test_a_broken_embedder_changes_nothing(result, text) -> None:
    embedder = BrokenEmbedder()
    embedder.result = result
    store = VectorStore(embedder, batch_size=1)
    store.add(numbered([1]))
    with pytest.raises(SettingsError, match=text):
        store.add([Document("2 new", "id1"), *numbered([2, 3, 4])])
    assert [document.text for document in store] == ["1 text"]


def test_vectors_of_another_number_or_width_change_nothing() -> None:
    store = VectorStore(NumberEmbedder())
    for vectors in (np.zeros((1, 16)), np.zeros((2, 7)), np.zeros(16)):
        with pytest.raises(SettingsError, match=r"`vectors` must have the shape \(2, 16\), got \("):
            store.add(numbered([1, 2]), vectors)
    with pytest.raises(SettingsError, match="`vectors` must have finite numbers, got NaN or infinity in row 1"):
        store.add(numbered([1, 2]), [[1.0] * 16, [math.nan] * 16])
    with pytest.raises(SettingsError, match="`vectors` must have numbers in rows of one length, got something else"):
        store.add(numbered([1, 2]), [[1.0] * 16, [1.0]])
    assert not len(store)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (Document(" \n"), r"documents\[1\] \(id '.*'\) has no text, got ' \\n'; leave empty passages out"),
        (Document("x", "d", {"when": {1, 2}}), r"documents\[1\] \(id 'd'\) must be JSON, got set under 'when'"),
        (Document("x", "d", {"score": math.inf}), "must be JSON, got float under 'score'"),
        (Document("x", "d", {"s": "\ud800"}), "must be JSON, got str under 's'"),
        (Document("x", "d", {7: "y"}), "the metadata keys of .* must be strings, got 7; write '7'"),
        (Document("x", "d", "y"), "must be a mapping, got 'y'; use a dict"),
        (Document("x\ud800", "d"), "the text of .* must be Unicode text"),
        (Document("x", "a\0b"), r"the id of documents\[1\] \(id 'a\\x00b'\) must not contain NUL, .*; leave it out"),
    ],
)
def test_a_document_that_cannot_be_kept_is_named(document, text) -> None:
    store = VectorStore()
    with pytest.raises(SettingsError, match=text):
        store.add(["fine", document])
    assert len(store) == 0


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda s: s.search("x", k=0), "`k` must be a whole number of at least 1, got 0"),
        (lambda s: s.search("x", k=-2), "got -2"),
        (lambda s: s.search("x", k=1.5), r"got 1\.5"),
        (lambda s: s.search(7), "`query` must be a string, got int; search_by_vector takes vectors"),
        (lambda s: s.search_by_vector([1.0, 2.0]), r"`vector` must have the shape \(64,\), got \(2,\)"),
        (lambda s: s.search_by_vector([math.nan] * 64), "`vector` must have finite numbers"),
        (lambda s: s.mmr("x", lambda_mult=2), r"`lambda_mult` must be between 0 and 1, got 2; 0\.5 is usual"),
        (lambda s: s.mmr("x", fetch_k=0), "`fetch_k` must be a whole number"),
        (lambda s: s.delete(), "`delete` takes either `ids` or `where`, got neither"),
        (lambda s: s.delete(["a"], {}), "got both"),
        (lambda s: s.delete("abc"), r"`ids` must be a list of strings, got 'abc'; write ids=\[...\]"),
        (lambda s: s.get([1]), r"`ids` must be a list of strings, got \[1\]"),
        (lambda s: s.add("text"), "`documents` must be a list, got one str"),
        (
            lambda s: VectorStore(index="flat"),
            "got 'flat', and this store has no vectors: .* or make a new store with vec",
        ),
        (lambda s: VectorStore(index="lsh"), '`index` must be "flat", "hnsw", "ivf" or "ivfpq", got \'lsh\''),
        (lambda s: IndexSettings(nprobe=0), "`nprobe` must be a whole number of at least 1, got 0"),
        (lambda s: IndexSettings(pq_bytes=True), "`pq_bytes` must be a whole number of at least 1, got True"),
        (lambda s: IndexSettings("ivfpq", rerank=0), "`rerank` must be a whole number of at least 1, got 0; leave it"),
        (
            lambda s: IndexSettings("ivfpq", ivf_train_at=255),
            '`ivf_train_at` must be at least 256, got 255; leave it out, or use "ivf"',
        ),
        (
            lambda s: VectorStore(LexicalEmbedder(100), index=IndexSettings("ivfpq", pq_bytes=48)),
            "`pq_bytes` must divide the dimension of the vectors, 100, got 48; leave it out for 20",
        ),
        (lambda s: VectorStore(batch_size=0), "`batch_size` must be a whole number"),
        (lambda s: VectorStore(read_only=True), "a store in memory has nothing to read"),
    ],
)
def test_requests_that_cannot_work(call, text) -> None:
    with pytest.raises(SettingsError, match=text):
        call(VectorStore(LexicalEmbedder(64)))


def test_a_zero_vector_is_far_from_everything() -> None:
    store = VectorStore(LexicalEmbedder(64))
    store.add(["!!!", "word"])
    assert {hit.score for hit in store.search("???")} == {0.0}
