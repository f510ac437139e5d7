"""Copy a store into a folder."""

from __future__ import annotations

from pathlib import Path

from memograft.passages.index import IndexKind, IndexSettings
from memograft.passages.vector_store import VectorStore

__all__ = ["copy_store"]

_AT_ONCE = 1_000  # passages in memory


def copy_store(store: VectorStore, path: str | Path, index: IndexKind | IndexSettings | None = None) -> None:
    """Make the store in the folder `path` equal to `store`, thousands of passages at a time.

    Raises:
        StoreError: the folder cannot be written, is another program's, or is open elsewhere.
        EmbedderMismatchError: the folder has a store with the vectors of another embedder.
    """
    with VectorStore(store.embedder, path, index=index, progress=False) as copy:
        ids = [document.id for document in store.find()]
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            copy.add(store.get(some), store.vectors(some))
        copy.delete(where={"$not": {"$id": ids}})
