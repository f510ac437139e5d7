"""How a store finds passages: filter in SQLite, neighbours in FAISS, documents in SQLite again.

`Searcher.nearest` takes a unit vector (D,) and gives documents with cosines; `mmr_order` picks varied ones. Writes
nothing but what brings a stale index up to date, and knows nothing of embedders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memograft.documents import Document
from memograft.store.cache import IndexCache
from memograft.store.db import Database
from memograft.store.filtered import FilterCache
from memograft.store.filters import compile_filter
from memograft.store.index import EXACT_BELOW, FloatArray, IdArray
from memograft.store.locks import ReadWriteLock

_TRIES = 3  # searches of a read-only store while a writer elsewhere deletes what was just found


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
        condition, parameters = compile_filter(where)
        for _ in range(_TRIES):
            with self._lock.reading():
                stale = self._cache.is_stale()
            if stale:
                with self._lock.writing():
                    self._cache.catch_up()
            with self._lock.reading():
                among = self._filtered.seqs(condition, parameters, self._cache.deletions) if where else None
                scores, seqs = self._find(vector, k, among)
                documents = self._database.documents(seqs.tolist())
            if len(documents) == len(seqs):
                break
        found = zip(seqs.tolist(), scores.clip(-1, 1).tolist(), strict=True)  # float32 rounds past 1
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
        hits = {seq: (document, score) for seq, document, score in self.nearest(vector, fetch_k, where)}
        seqs, vectors = self._vectors(list(hits))
        order = mmr_order(np.array([hits[seq][1] for seq in seqs]), vectors, k, lambda_mult)
        return [hits[seqs[position]] for position in order]

    def vectors(self, ids: Sequence[str]) -> FloatArray:
        """Return the (N, D) unit vectors of these passages, in this order, without those that are not there."""
        with self._lock.reading():
            wanted = [seq for seq in self._database.seqs_of_ids(ids) if seq is not None]
        seqs, vectors = self._vectors(wanted)
        places = {seq: place for place, seq in enumerate(seqs)}
        return np.asarray(vectors[[places[seq] for seq in wanted if seq in places]], np.float32)

    def _vectors(self, seqs: list[int]) -> tuple[list[int], FloatArray]:
        """Return (seqs, (N, D) unit vectors) of those of these passages that are still there, by ascending seq."""
        with self._lock.reading():
            parts = list(self._database.vectors(np.array(sorted(seqs), np.int64)))
        if not parts:
            return [], np.zeros((0, 0), np.float32)
        return np.concatenate([part for part, _ in parts]).tolist(), np.concatenate([rows for _, rows in parts])


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
