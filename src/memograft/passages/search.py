"""How a store finds passages: filter in SQLite, neighbours in FAISS, documents in SQLite again.

`Searcher.nearest` takes a unit vector (D,) and gives documents with cosines; `mmr_order` picks varied ones. Writes
nothing but what brings a stale index up to date, and knows nothing of embedders. What one call gives is of one state
of the store, however busy a writer in another process is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from memograft.documents import Document
from memograft.passages.cache import IndexCache
from memograft.passages.db import Database
from memograft.passages.filtered import FilterCache
from memograft.passages.filters import Condition, compile_filter
from memograft.passages.index import EXACT_BELOW, FloatArray, IdArray
from memograft.storage.locks import ReadWriteLock

T = TypeVar("T")


@dataclass(frozen=True)
class Hit:
    """One search result.

    Attributes:
        document: the passage.
        score: cosine similarity with the question, in [-1, 1]; higher is closer.
    """

    document: Document
    score: float


class Searcher:
    """Searches one store; any number of threads may call it."""

    def __init__(self, database: Database, cache: IndexCache, lock: ReadWriteLock) -> None:
        self._database = database
        self._cache = cache
        self._lock = lock
        self._filtered = FilterCache(database)

    def nearest(self, vector: FloatArray, k: int, where: Mapping[str, Any] | None) -> list[tuple[int, Document, float]]:
        """Return (seq, document, cosine) of the k passages closest to the unit vector (D,), best first."""
        condition = _condition(where)
        return self._in_one_state(lambda: self._nearest(vector, k, condition))

    def _in_one_state(self, read: Callable[[], T]) -> T:
        """Call `read` with an index and a database that say the same until it has ended."""
        with self._lock.reading():
            if not self._cache.is_stale():
                found = read()
                if not self._cache.is_stale():  # no other process has committed meanwhile
                    return found
        with self._lock.writing():
            return self._database.at_once(lambda: self._caught_up(read))

    def _caught_up(self, read: Callable[[], T]) -> T:
        self._cache.catch_up()
        return read()

    def _nearest(self, vector: FloatArray, k: int, condition: Condition | None) -> list[tuple[int, Document, float]]:
        among = None if condition is None else self._filtered.seqs(*condition, self._cache.deletions)
        scores, seqs = self._find(vector, k, among)
        documents = self._database.documents(seqs.tolist())
        found = zip(seqs.tolist(), scores.clip(-1, 1).tolist(), strict=True)  # float32 rounds past 1
        # None is missing in one state of the store, and what was read from two is not used.
        return [(seq, documents[seq], score) for seq, score in found if seq in documents]

    def _find(self, vector: FloatArray, k: int, among: IdArray | None) -> tuple[FloatArray, IdArray]:
        """Ask the index, or the vectors one by one where it is approximate and would find too few."""
        index = self._cache.index
        if among is not None and len(among) <= EXACT_BELOW and not index.is_exact:
            return self._cache.score(vector, k, among)
        scores, seqs = index.search(vector, k, among)
        if len(seqs) < min(k, len(index) if among is None else len(among)):
            return self._cache.score(vector, k, self._database.seqs() if among is None else among)
        return scores, seqs

    def varied(
        self, vector: FloatArray, k: int, fetch_k: int, lambda_mult: float, where: Mapping[str, Any] | None
    ) -> list[tuple[Document, float]]:
        """Return (document, cosine) of k of the `fetch_k` nearest, by `mmr_order`."""
        condition = _condition(where)

        def read() -> tuple[list[tuple[int, Document, float]], FloatArray]:
            hits = sorted(self._nearest(vector, fetch_k, condition), key=lambda hit: hit[0])
            return hits, self._vectors(np.array([seq for seq, _, _ in hits], np.int64))

        hits, vectors = self._in_one_state(read)
        order = mmr_order(np.array([score for _, _, score in hits]), vectors, k, lambda_mult)
        return [hits[position][1:] for position in order]

    def documents(self, ids: Sequence[str]) -> list[Document]:
        """Return the documents with these ids, in this order, without those that are not there."""

        def read() -> list[Document]:
            seqs = [seq for seq in self._database.seqs_of_ids(ids) if seq is not None]
            documents = self._database.documents(seqs)
            return [documents[seq] for seq in seqs]

        with self._lock.reading():
            return self._database.at_once(read)

    def vectors(self, ids: Sequence[str]) -> FloatArray:
        """Return the (N, D) unit vectors of these passages, in this order, without those that are not there."""

        def read() -> FloatArray:
            seqs = [seq for seq in self._database.seqs_of_ids(ids) if seq is not None]
            ascending, places = np.unique(np.array(seqs, np.int64), return_inverse=True)
            return self._vectors(ascending)[places]

        with self._lock.reading():
            return self._database.at_once(read)

    def _vectors(self, seqs: IdArray) -> FloatArray:
        """Return the (N, D) unit vectors of N passages that are there, given in ascending order."""
        parts = [rows for _, rows in self._database.vectors(seqs)]
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def _condition(where: Mapping[str, Any] | None) -> Condition | None:
    """Return a filter as SQL; None where it lets everything through."""
    condition = compile_filter(where)
    return condition if where else None


def mmr_order(relevance: NDArray[np.float64], vectors: FloatArray, k: int, lambda_mult: float) -> list[int]:
    """Return the positions of up to k of N candidates by maximal marginal relevance.

    Carbonell and Goldstein, "The use of MMR, diversity-based reranking", 1998, section 2.

    Args:
        relevance: (N,) cosines with the question.
        vectors: (N, D) unit vectors.
        k: how many.
        lambda_mult: weight of relevance against novelty, in [0, 1].
    """
    taken: list[int] = []
    closest_taken = np.full(len(relevance), -np.inf)
    while len(taken) < min(k, len(relevance)):
        redundancy = closest_taken if taken else np.zeros(len(relevance))
        gain = lambda_mult * relevance - (1 - lambda_mult) * redundancy
        gain[taken] = -np.inf
        best = int(np.argmax(gain))
        taken.append(best)
        closest_taken = np.maximum(closest_taken, vectors @ vectors[best])
    return taken
