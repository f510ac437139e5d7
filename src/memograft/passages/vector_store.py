"""`VectorStore`: passages with metadata in SQLite, searched by words (BM25), by vectors (FAISS), or both.

Acknowledged writes survive a crash. SQLite is the source of truth, including vectors, and the FAISS index is a cache of
it, so files never have to agree with each other. Nothing is pickled. There can be one writer and many readers at a
time, among threads and processes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from memograft.documents import Document
from memograft.errors import SettingsError, StoreError
from memograft.passages.checks import (
    check_count,
    check_question,
    check_varied,
    checked_ids,
    checked_mode,
    checked_vectors,
    embedded_query,
)
from memograft.passages.db import FILE_NAME
from memograft.passages.embedders import Embedder
from memograft.passages.filters import compile_filter
from memograft.passages.incoming import prepared
from memograft.passages.index import FloatArray, IndexKind, IndexSettings
from memograft.passages.open import opened
from memograft.passages.search import Hit, Searcher, SearchMode
from memograft.passages.verify import compared, inspected
from memograft.storage.disk import is_there
from memograft.storage.locks import ReadWriteLock
from memograft.storage.process import OfOneProcess

__all__ = ["Hit", "IndexSettings", "SearchMode", "VectorStore"]

_PAGE = 256  # documents per step of an iteration

logger = logging.getLogger(__name__)


class VectorStore(OfOneProcess, instead="open its folder in each process: VectorStore.open(...)"):
    """Passages that can be searched by words, by meaning and by metadata.

    Methods may be called from any thread and interrupted (Ctrl-C) at any point: a write is then complete or absent.
    Searches run in parallel and wait only while a write commits; each sees one state of the store. One process may
    write; any number may open the store read-only, and they see the writer's commits at their next call. A forked child
    must open a store on disk again, and has its own copy of one in memory.

    Args:
        embedder: turns text into vectors. None: the one the store was built with; a new store then has no embedder and
            is searched by words only. A store refuses another embedder than its own.
        path: folder of the store, created if it does not exist; None keeps everything in memory.
        index: "flat", "hnsw", "ivf", "ivfpq", or `IndexSettings`. None: the store's, or "flat" for a new one. Another
            kind than the store's rebuilds the index. A store without an embedder has none.
        read_only: map the index file into memory and refuse every write.
        batch_size: number of texts given to the embedder at once.
        progress: show a progress bar on a terminal when embedding or indexing takes long.
        lock_timeout: seconds to wait until another writer closes the store; math.inf waits without limit.

    Raises:
        SettingsError: an invalid setting.
        EmbedderMismatchError: the store was built with another embedder.
        StoreLockedError: another writer has the store open, and still has after `lock_timeout`.
        StoreCorruptError: a file of the store is damaged or is not a store's.
        StoreError: `read_only` without a store, or the folder cannot be used.

    Example:
        >>> store = VectorStore()
        >>> ids = store.add(["Paris is the capital of France.", "Bergamot is a citrus fruit."])
        >>> store.search("What is the capital of France?", k=1)[0].document.text
        'Paris is the capital of France.'
    """

    def __init__(
        self,
        embedder: Embedder | None = None,
        path: str | Path | None = None,
        *,
        index: IndexKind | IndexSettings | None = None,
        read_only: bool = False,
        batch_size: int = 256,
        progress: bool = True,
        lock_timeout: float = 0.0,
    ) -> None:
        check_count("batch_size", batch_size)
        settings = index if index is None or isinstance(index, IndexSettings) else IndexSettings(index)
        folder = None if path is None else Path(path)
        self._batch_size = batch_size
        self._progress = progress
        self._one_writer = threading.RLock()
        self._lock = ReadWriteLock()
        self._access, self._database, self._embedder, self._cache = opened(
            folder, embedder, settings, read_only=read_only, progress=progress, lock_timeout=lock_timeout
        )
        self._search = Searcher(self._database, self._cache, self._lock)

    @classmethod
    def open(
        cls, path: str | Path, embedder: Embedder | None = None, read_only: bool = False, lock_timeout: float = 0.0
    ) -> VectorStore:
        """Open an existing store; by default with the embedder it was built with.

        Raises:
            StoreError: there is no store at `path`; otherwise as the class.
        """
        if not is_there(Path(path) / FILE_NAME):
            raise StoreError(f"{path} holds no store; create it with VectorStore(path=...), or check the path")
        return cls(embedder, path, read_only=read_only, lock_timeout=lock_timeout)

    def add(
        self, documents: Iterable[Document | str | Mapping[str, Any]], vectors: ArrayLike | None = None
    ) -> list[str]:
        """Add documents, replacing those with the same id: all of them or, on any error, none.

        On return they are on disk. If several documents of a call have the same id, the last one is stored. All vectors
        of a call are in memory, 4 x D bytes each, so add millions in several calls.

        Args:
            documents: the documents to add.
            vectors: (N, D), the embedder's vectors for them; the documents may then lack text. None: computed here.

        Returns:
            The ids, one for each document, in order.

        Raises:
            SettingsError: a document without text or with metadata that is not JSON, or vectors, given or embedded, of
                another shape or not finite.
            StoreReadOnlyError: the store is open read-only.
            StoreError: the disk is full, or the store is closed.
        """
        self._access.require_writable()
        ids, rows, units = prepared(documents, vectors, self._embedder, self._batch_size, self._progress)
        if not rows:
            return []
        with self._one_writer:
            with self._lock.writing():
                self._access.require_writable()
                self._cache.expect()
                gone, new = self._database.upsert(rows)
                self._cache.apply(gone, new, units)
            self._tidy()
        return ids

    def delete(self, ids: Sequence[str] | None = None, where: Mapping[str, Any] | None = None) -> int:
        """Delete by id or by metadata and return the number of deleted passages; unknown ids are no error.

        Raises:
            SettingsError: not exactly one of `ids` and `where`; `where={}` deletes everything.
            FilterError: `where` is malformed.
            StoreReadOnlyError, StoreError: as `add`.
        """
        self._access.require_writable()
        if (ids is None) == (where is None):
            raise SettingsError(
                f"`delete` takes either `ids` or `where`, got {'neither' if ids is None else 'both'}; where={{}} "
                "deletes everything"
            )
        condition, parameters = compile_filter(where)
        wanted = checked_ids(ids) if ids is not None else []
        with self._one_writer:
            with self._lock.writing():
                self._access.require_writable()
                if ids is None:
                    gone = self._database.seqs(condition, parameters).tolist()
                else:
                    gone = sorted({seq for seq in self._database.seqs_of_ids(wanted) if seq is not None})
                self._cache.expect()
                self._database.remove(gone)
                self._cache.apply(gone, [], np.zeros((0, self._embedder.dimension), np.float32))
            self._tidy()
        return len(gone)

    def _tidy(self) -> None:
        try:
            self._cache.renew(self._lock)
        except (StoreError, RuntimeError, MemoryError) as error:  # the write is complete, and the old index still works
            logger.warning("the vector index could not be rebuilt and stays as it is: %s", error)

    def compact(self) -> int:
        """Rebuild the indexes (training clusters again), shrink the files, persist; return the number of dead vectors.

        This also adds missing checksums.

        Raises:
            StoreReadOnlyError, StoreError: as `add`; shrinking needs as much free disk space as the store has.
        """
        self._access.require_writable()
        with self._one_writer:
            dead = self._cache.renew(self._lock, always=True)
            with self._lock.writing():
                self._database.sum_up()
                self._database.rebuild_words()
                self._database.shrink()
                self._persist()
        return dead

    def persist(self) -> None:
        """Write the index file, so that the next opening need not rebuild it. Documents are on disk already.

        Raises:
            StoreReadOnlyError: the store is open read-only.
            StoreError: the disk is full (nothing is lost), or the store is closed.
        """
        self._access.require_writable()
        with self._one_writer, self._lock.reading():
            self._persist()

    def _persist(self) -> None:
        self._cache.persist()
        self._database.seal_words()

    def close(self) -> None:
        """Persist and close. A second call does nothing. If the index file cannot be written, a warning is logged."""
        if self._access.inherited:  # only the parent closes it
            return
        with self._one_writer, self._lock.writing():
            try:
                if not (self._access.closed or self._access.read_only):
                    self._persist()
            except StoreError as error:
                logger.warning("the store closes without its index file and will rebuild it: %s", error)
            finally:  # also after an interrupt
                self._database.close()
                self._access.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def search(
        self,
        query: str,
        k: int = 4,
        where: Mapping[str, Any] | None = None,
        *,
        mode: SearchMode | None = None,
        vector: ArrayLike | None = None,
    ) -> list[Hit]:
        """Return the k passages closest to a question, best first; fewer only if fewer match `where`.

        Args:
            query: the question. Nothing in it is syntax.
            k: number of passages, at least 1.
            where: metadata filter, such as `{"year": {"$gte": 1990}, "lang": "en"}`, with $eq $ne $gt $gte $lt $lte $in
                $nin $contains $exists $empty $type $and $or $not. Comparisons are typed: 1 is neither "1" nor True. A
                list matches if any element does. $ne, $nin and $not match passages without the key, as in MongoDB.
                `{"$id": ["a", "b"]}` matches by id.
            mode: "vector" compares the vectors; "text" ranks by BM25, which is 0 for a passage that shares no word with
                the question; "hybrid" combines both rankings (reciprocal rank fusion), which finds most. Default:
                "vector" if the store has an embedder, else "text". See `Hit` for the scores.
            vector: (D,), the embedder's vector of the question; by default the embedder is called. Not needed for
                "text".

        Raises:
            SettingsError: `k` is not positive, `query` is not a string, or the store has no vectors for this `mode`.
            FilterError: `where` is malformed.
            StoreError: the store is closed, or has no text index, as an older store before it is opened for writing.
        """
        check_question(query)
        check_count("k", k)
        mode = checked_mode(mode, self._embedder.dimension)
        self._access.require_open()
        if mode == "text":
            return [Hit(*found) for found in self._search.matching(query, k, where)]
        if vector is None:
            vector = embedded_query(self._embedder, query)
        if mode == "vector":
            return self.search_by_vector(vector, k, where)
        unit = checked_vectors(vector, (self._embedder.dimension,), "`vector` must have")
        return [Hit(*found) for found in self._search.either(query, unit, k, where)]

    def search_by_vector(self, vector: ArrayLike, k: int = 4, where: Mapping[str, Any] | None = None) -> list[Hit]:
        """Return the k passages closest to a vector (D,) of any length; otherwise as `search`.

        Raises:
            SettingsError: another shape, or numbers that are not finite; otherwise as `search`.
        """
        unit = checked_vectors(vector, (self._embedder.dimension,), "`vector` must have")
        check_count("k", k)
        self._access.require_open()
        return [Hit(document, score) for _, document, score in self._search.nearest(unit, k, where)]

    def mmr(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        where: Mapping[str, Any] | None = None,
    ) -> list[Hit]:
        """Return k of the `fetch_k` closest passages that are close to the question and different from each other.

        Maximal marginal relevance (Carbonell and Goldstein, 1998, section 2): each step takes the passage with the
        largest `lambda_mult` x cosine with the question - (1 - `lambda_mult`) x largest cosine with one taken before. 1
        is plain search. Hits have the cosine with the question. A store without an embedder compares by words: BM25
        relative to the highest, and cosines of the passages' bags of words.

        Raises:
            SettingsError: `lambda_mult` is outside [0, 1], or `fetch_k` is not positive; otherwise as `search`.
        """
        if self._embedder.dimension:
            return self.mmr_by_vector(embedded_query(self._embedder, query), k, fetch_k, lambda_mult, where)
        check_question(query)
        check_varied(k, fetch_k, lambda_mult)
        self._access.require_open()
        return [Hit(*found) for found in self._search.varied_words(query, k, max(k, fetch_k), lambda_mult, where)]

    def mmr_by_vector(
        self,
        vector: ArrayLike,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        where: Mapping[str, Any] | None = None,
    ) -> list[Hit]:
        """As `mmr`, with the question as a vector (D,) of any length."""
        check_varied(k, fetch_k, lambda_mult)
        self._access.require_open()
        unit = checked_vectors(vector, (self._embedder.dimension,), "`vector` must have")
        return [Hit(*found) for found in self._search.varied(unit, k, max(k, fetch_k), lambda_mult, where)]

    def verify(self) -> list[Path]:
        """Read all files and compare them with their checksums. Searches and writes continue meanwhile.

        Opening checks only the structure of the database, and not that of one over 1 GiB. Each text and vector is
        compared when it is read.

        Returns:
            The files with missing checksums: only those of older stores that were not compacted since.

        Raises:
            StoreCorruptError: a file is damaged; the message names all of them.
            StoreError: the store is closed.
        """
        self._access.require_open()
        file = self._database.file
        return (inspected(file.parent) if file else compared(self._database)).or_raise()

    @property
    def embedder(self) -> Embedder:
        """The store's embedder; `NoVectors()`, of dimension 0, if it has none."""
        return self._embedder

    def get(self, ids: Sequence[str]) -> list[Document]:
        """Return the documents with these ids, in their order, skipping unknown ids."""
        self._access.require_open()
        return self._search.documents(checked_ids(ids))

    def vectors(self, ids: Sequence[str]) -> FloatArray:
        """Return the (N, D) unit vectors of the documents with these ids, as `get` returns the documents."""
        self._access.require_open()
        if self._embedder.dimension == 0:
            return np.zeros((len(self.get(ids)), 0), np.float32)
        return self._search.vectors(checked_ids(ids))

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """Return how many passages match a filter.

        Raises:
            FilterError: `where` is malformed.
        """
        condition, parameters = compile_filter(where)
        self._access.require_open()
        with self._lock.reading():
            return self._database.count(condition, parameters)

    def __len__(self) -> int:
        return self.count()

    def __iter__(self) -> Iterator[Document]:
        """Yield every document, as `find`."""
        return self.find()

    def find(self, where: Mapping[str, Any] | None = None) -> Iterator[Document]:
        """Yield the documents that match a filter now, oldest first, without those deleted meanwhile.

        Raises:
            FilterError: `where` is malformed.
        """
        condition, parameters = compile_filter(where)
        self._access.require_open()
        with self._lock.reading():
            seqs = self._database.seqs(condition, parameters)
        for start in range(0, len(seqs), _PAGE):
            self._access.require_open()
            with self._lock.reading():
                page = self._database.documents(seqs[start : start + _PAGE].tolist())
            yield from page.values()
