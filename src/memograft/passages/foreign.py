"""Passages from other programs: FAISS files whose vectors a store takes over, metadata that becomes plain JSON.

FAISS checks less than it should in a file made to harm, so read files of people you trust.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memograft.documents import Document
from memograft.errors import SettingsError, StoreCorruptError, StoreError
from memograft.passages.vector_store import VectorStore

if TYPE_CHECKING:
    import faiss

__all__ = ["FaissVectors", "plain_document"]

_AT_ONCE = 10_000  # vectors in memory
_DEEPEST = 50  # levels of nesting in metadata; what contains itself ends here
_MOST = 100_000  # values in one document's metadata; one small list referred to again and again can be a billion


class FaissVectors:
    """The vectors of a FAISS index file.

    Args:
        file: what `faiss.write_index` wrote.

    Attributes:
        count: N, the number of vectors.
        dimension: D, the length of each.

    Raises:
        StoreCorruptError: FAISS cannot read the file.
        StoreError: the index cannot reconstruct its vectors.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._index = _read(file)
        self.count, self.dimension = int(self._index.ntotal), int(self._index.d)

    def add_to(self, store: VectorStore, documents: Sequence[Document], embedder: str) -> None:
        """Add N documents with these vectors, thousands at a time. `embedder` is the name of the store's embedder.

        Raises:
            SettingsError: the store has vectors of another length, or none.
        """
        if self.dimension != store.embedder.dimension:
            raise SettingsError(
                f"the vectors of {self._file} have {self.dimension} numbers each, got {embedder} with "
                f"{store.embedder.dimension}; pass the embedding model that they were made with"
            )
        for start in range(0, len(documents), _AT_ONCE):
            some = documents[start : start + _AT_ONCE]
            store.add(some, self._index.reconstruct_n(start, len(some)))


def _read(file: Path) -> faiss.Index:
    import faiss

    try:
        index = faiss.read_index(str(file))
    except (RuntimeError, MemoryError) as error:
        raise StoreCorruptError(
            f"FAISS cannot read {file} ({str(error).splitlines()[0][:200]}); restore it from a backup"
        ) from error
    try:
        if isinstance(index, faiss.IndexIVF):
            index.make_direct_map()  # from positions to its lists
        if index.ntotal:
            index.reconstruct(0)  # reconstruct_n ends the process where an index has none
    except RuntimeError as error:
        raise StoreError(
            f"{file} is a {type(index).__name__}, which does not give its vectors back; add the documents to a new "
            "store, which embeds them again"
        ) from error
    return index


def plain_document(text: str, id: str, metadata: object) -> Document:
    """Return a document with metadata of its own, however often its parts are shared.

    Raises:
        ValueError: the metadata is no dict, is not JSON, is too large or too deep, or a text is not Unicode.
    """
    plain = _json(metadata, iter(range(_MOST)), 0)
    if not isinstance(plain, dict):
        raise ValueError(f"its metadata is a {type(metadata).__name__}, which is no dict")
    f"{text}{json.dumps(plain, ensure_ascii=False)}".encode()
    return Document(text, id, plain)


def _json(value: object, budget: Iterator[int], depth: int) -> object:
    if next(budget, None) is None or depth > _DEEPEST:
        raise ValueError(f"its metadata has more than {_MOST} values, or is nested deeper than {_DEEPEST} levels")
    match value:
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
        case list() | tuple():
            return [_json(item, budget, depth + 1) for item in value]
        case dict():
            return {_key(key): _json(item, budget, depth + 1) for key, item in value.items()}
    raise ValueError(
        f"its metadata holds {value if isinstance(value, float) else type(value).__name__}, which is not JSON"
    )


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise ValueError(f"its metadata has the key {key!r}, which is no string")
    return key
