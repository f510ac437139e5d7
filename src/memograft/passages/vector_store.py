"""`VectorStore`: passages with metadata in SQLite, found again by their words (BM25), their vectors (FAISS), or both.

Takes and gives `Document`s; whatever it acknowledged survives a crash. SQLite holds the truth, vectors included, and
the FAISS index is a cache of it, so no file is ever trusted to agree with another, and nothing is pickled. One writer
and many readers at a time, threads and processes alike. Knows nothing of language models, prompts and memories.
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

    Every method may be called from any thread, and interrupted (Ctrl-C) at any point: a write is then there or not.
    Searches run side by side and wait only while a write commits; each sees one state of the store. Of several
    processes one may write; any number may open the store read-only, and they see each commit of the writer at their
    next call. A forked child opens a store on disk again, and has its own copy of one in memory.

    Args:
        embedder: turns text into vectors; left out, the one the store was built with, or none for a new one, which is
            then searched by its words alone. A store refuses another embedder than its own.
        path: folder of the store, made if it is not there; None keeps everything in memory.
        index: "flat", "hnsw", "ivf", or `IndexSettings`; left out, what the store has, or "flat" for a new one. Another
            kind than the store has rebuilds the index. A store without an embedder has none.
        read_only: map the index file into memory and refuse every write.
        batch_size: texts given to the embedder at once.
        progress: show a progress bar on a terminal when embedding or indexing takes long.
        lock_timeout: seconds to wait until another writer closes the store; math.inf waits as long as it takes.

    Raises:
        SettingsError: a setting that cannot work.
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
        """Open a store that exists; without `embedder`, with the one it was built with.

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

        On return they are on the disk. Of documents with the same id in one call, the last one stays. The vectors of
        one call are in memory together, 4 x D bytes each, so add millions in several calls.

        Args:
            documents: what to add.
            vectors: (N, D), what the store's embedder made of each of them, which may then lack text; left out, it is
                asked.

        Returns:
            The ids, one for each document, in order.

        Raises:
            SettingsError: a document without text or with metadata that is not JSON, or vectors, given or embedded,
                of another shape or not finite.
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
        """Delete by id or by metadata and return how many passages that were; unknown ids are no error.

        Raises:
            SettingsError: not exactly one of `ids` and `where`; `where={}` deletes everything.
            FilterError: `where` is not well formed.
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
        except (StoreError, RuntimeError, MemoryError) as error:  # the write itself is done, and the old index serves
            logger.warning("the vector index could not be rebuilt and stays as it is: %s", error)

    def compact(self) -> int:
        """Rebuild the indexes (and train "ivf" anew), shrink the files, persist; return how many dead vectors went.

        What was stored before there were checksums has them then.

        Raises:
            StoreReadOnlyError, StoreError: as `add`; shrinking needs as much free disk as the store takes.
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
        """Write the index file, so that the next opening need not rebuild it. Documents are on the disk already.

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
        """Persist and close. A second call does nothing; should the index file not be writable, a log line says so."""
        if self._access.inherited:  # it is the parent's to close
            return
        with self._one_writer, self._lock.writing():
            try:
                if not (self._access.closed or self._access.read_only):
                    self._persist()
            except StoreError as error:
                logger.warning("the store closes without its index file and will rebuild it: %s", error)
            finally:  # in full even after a call that was cut off here
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
            query: the question. Any text: nothing in it is syntax.
            k: how many, at least 1.
            where: metadata filter, such as `{"year": {"$gte": 1990}, "lang": "en"}`, with $eq $ne $gt $gte $lt $lte
                $in $nin $contains $exists $empty $type $and $or $not. Comparisons are typed: 1 is neither "1" nor True.
                A list matches if any element does. $ne, $nin and $not match passages that lack the key, as in MongoDB.
                `{"$id": ["a", "b"]}` matches by id.
            mode: "vector" compares the vectors; "text" ranks by BM25, which is 0 for a passage that shares no word with
                the question; "hybrid" does both and joins the rankings (reciprocal rank fusion), which finds most. Left
                out, "vector" if the store has an embedder, else "text". `Hit` says what the scores are.
            vector: (D,), what the store's embedder makes of the question; left out, it is asked. "text" needs none.

        Raises:
            SettingsError: `k` is not positive, `query` not a string, or the store has no vectors for this `mode`.
            FilterError: `where` is not well formed.
            StoreError: the store is closed, or has no text index: one that is open read-only and was never opened for
                writing since there is one.
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
        """Return k of the `fetch_k` closest passages that are close to the question and unlike each other.

        Maximal marginal relevance (Carbonell and Goldstein, 1998, section 2): each step takes the passage with the
        largest `lambda_mult` x cosine with the question - (1 - `lambda_mult`) x largest cosine with one taken before.
        1 is plain search. Hits carry the cosine with the question. A store without an embedder compares by words: BM25
        as a share of the highest, and cosines of the passages' bags of words.

        Raises:
            SettingsError: `lambda_mult` outside [0, 1], `fetch_k` not positive; otherwise as `search`.
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
        """Read all files from end to end and compare them with their checksums; searches and writes go on meanwhile.

        Opening looks for pages that make no sense, and each text and vector is compared when it is read.

        Returns:
            The files in which something has no checksum: none, unless it is from before there were any, and was not
            compacted since.

        Raises:
            StoreCorruptError: a file is damaged; the message names each of them.
            StoreError: the store is closed.
        """
        self._access.require_open()
        file = self._database.file
        return (inspected(file.parent) if file else compared(self._database)).or_raise()

    @property
    def embedder(self) -> Embedder:
        """What turns text into this store's vectors; `NoVectors()`, of dimension 0, if it has none."""
        return self._embedder

    def get(self, ids: Sequence[str]) -> list[Document]:
        """Return the documents with these ids, in their order, skipping ids that are not there."""
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
            FilterError: `where` is not well formed.
        """
        condition, parameters = compile_filter(where)
        self._access.require_open()
        with self._lock.reading():
            return int(self._database.rows(f"SELECT count(*) FROM passages WHERE {condition}", parameters)[0][0])

    def __len__(self) -> int:
        return self.count()

    def __iter__(self) -> Iterator[Document]:
        """Yield every document, as `find`."""
        return self.find()

    def find(self, where: Mapping[str, Any] | None = None) -> Iterator[Document]:
        """Yield the documents that match a filter now, oldest first, skipping what is deleted meanwhile.

        Raises:
            FilterError: `where` is not well formed.
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
