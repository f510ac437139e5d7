"""What copies of a store in other databases share: what is new, whose vectors may be compared, what was done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from memograft.documents import Document
from memograft.errors import EmbedderMismatchError, SettingsError
from memograft.passages.checks import FloatArray
from memograft.passages.embedders import Embedder, embedder_from_config
from memograft.passages.vector_store import VectorStore
from memograft.storage.disk import JsonObject

__all__ = ["Copied", "add_changed", "batches", "check_comparable", "check_vectors", "equal", "recorded_embedder"]

_ROUNDING = 1e-6  # of a unit vector's numbers, after another program has normalised them again


@dataclass(frozen=True)
class Copied:
    """What a copy did.

    Attributes:
        passages: number of passages in the source.
        written: how many of them were new or different, and were written.
    """

    passages: int
    written: int


def check_vectors(store: VectorStore) -> None:
    """Refuse a store without vectors."""
    if store.embedder.dimension == 0:
        raise SettingsError(
            "only a store with vectors can be copied there, got one without an embedder; make a new store with one: "
            "VectorStore(embedder, path)"
        )


def check_comparable(what: str, size: int, recorded: JsonObject | None, embedder: Embedder) -> None:
    """Refuse vectors of another length, or of another embedder if the one that made them is recorded."""
    if size != embedder.dimension:
        raise SettingsError(
            f"the vectors of {what} have {size} numbers each, got an embedder with {embedder.dimension} "
            f"({embedder.fingerprint}); use the one that made them, or copy to another place"
        )
    if recorded is not None and recorded["fingerprint"] != embedder.fingerprint:
        raise EmbedderMismatchError(
            f"{what} has vectors of the embedder {recorded['fingerprint']!r}, got {embedder.fingerprint!r}; use that "
            "one, or copy to another place"
        )


def recorded_embedder(what: str, recorded: JsonObject | None) -> Embedder:
    """Build the embedder that a copy recorded."""
    if recorded is None:
        raise SettingsError(
            f"{what} does not record the embedder of its vectors, as what LangChain made; name the embedder"
        )
    return embedder_from_config(recorded["config"])


def batches(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Yield the ids, `size` at a time."""
    return (ids[start : start + size] for start in range(0, len(ids), size))


def add_changed(store: VectorStore, documents: Sequence[Document], vectors: FloatArray) -> int:
    """Add those of N documents that are new or different, with their (N, D) unit vectors, and return how many."""
    ids = [document.id for document in documents]
    there = {old.id: (old, vector) for old, vector in zip(store.get(ids), store.vectors(ids), strict=True)}
    changed = [
        n
        for n, (document, vector) in enumerate(zip(documents, vectors, strict=True))
        if document.id not in there or not equal(*there[document.id], document, vector)
    ]
    if changed:
        store.add([documents[n] for n in changed], vectors[changed])
    return len(changed)


def equal(old: Document, old_vector: FloatArray, new: Document, vector: FloatArray) -> bool:
    """Whether two passages are equal, up to rounding of their (D,) unit vectors."""
    same = (old.id, old.text, _json(old)) == (new.id, new.text, _json(new))
    return same and bool(np.allclose(old_vector, vector, rtol=0, atol=_ROUNDING))


def _json(document: Document) -> str:
    return json.dumps(document.metadata, sort_keys=True)  # in Python 1 == True
