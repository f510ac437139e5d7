"""Search a store: filters and words in SQLite, neighbours in FAISS, documents from SQLite.

`Searcher.nearest` takes a unit vector (D,) and returns documents with cosines, `matching` takes a question and returns
BM25 scores, `either` combines both; `mmr_order` selects diverse ones. The result of a call belongs to one state of the
store, even while another process writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from memograft.documents import Document
from memograft.passages import words
from memograft.passages.cache import IndexCache, NoIndex
from memograft.passages.db import Database
from memograft.passages.embedders import unit_rows
from memograft.passages.filtered import FilterCache
from memograft.passages.filters import Condition, compile_filter
from memograft.passages.index import FloatArray, IdArray
from memograft.storage.locks import ReadWriteLock

SearchMode = Literal["text", "vector", "hybrid"]
T = TypeVar("T")

_FUSED = 100  # least length of the rankings to combine: lower ranks add less than 1 / 160
_DAMPING = 60  # constant of reciprocal rank fusion, as in its paper


@dataclass(frozen=True)
class Hit:
    """One search result.

    Attributes:
        document: the passage.
        score: higher is better. By mode: "vector", the cosine with the question, in [-1, 1]; "text", BM25, at least 0
            and without an upper limit, which depends on the question and the other passages; "hybrid", the sum of 1 /
            (60 + rank) over both rankings, at most 2 / 61. Only cosines can be compared between questions.
    """

    document: Document
    score: float


class Searcher:
    """Searches one store. Thread-safe."""

    def __init__(self, database: Database, cache: IndexCache | NoIndex, lock: ReadWriteLock) -> None:
        self._database = database
        self._cache = cache
        self._lock = lock
        self._filtered = FilterCache(database)

    def nearest(self, vector: FloatArray, k: int, where: Mapping[str, Any] | None) -> list[tuple[int, Document, float]]:
        """Return (seq, document, cosine) of the k passages closest to the unit vector (D,), best first."""
        condition = _condition(where)
        return self._in_one_state(lambda: self._nearest(vector, k, condition))

    def matching(self, question: str, k: int, where: Mapping[str, Any] | None) -> list[tuple[Document, float]]:
        """Return (document, BM25) of the k passages that match the question's words best, best first.

        If fewer passages share a word, others follow with score 0, in the order in which they were added.
        """
        condition = _condition(where)

        def read() -> list[tuple[Document, float]]:
            found = self._matching(question, k, condition)
            if len(found) < k:
                found += self._database.others([seq for seq, _ in found], k - len(found), *(condition or ()))
            return self._documents(found)

        with self._lock.reading():
            return self._database.at_once(read)

    def either(
        self, question: str, vector: FloatArray, k: int, where: Mapping[str, Any] | None
    ) -> list[tuple[Document, float]]:
        """Return (document, score) of the k passages that rank highest in both rankings together; see `fused`."""
        condition = _condition(where)

        def read() -> list[tuple[Document, float]]:
            by_words = [seq for seq, _ in self._matching(question, max(k, _FUSED), condition)]
            by_vector = [seq for seq, _ in self._closest(vector, max(k, _FUSED), condition)]
            return self._documents(fused([by_words, by_vector])[:k])

        return self._in_one_state(read)

    def _matching(self, question: str, k: int, condition: Condition | None) -> list[tuple[int, float]]:
        return self._database.matching(question, k, *(condition or (None, ())))

    def _documents(self, found: Sequence[tuple[int, float]]) -> list[tuple[Document, float]]:
        documents = self._database.documents([seq for seq, _ in found])
        return [(documents[seq], score) for seq, score in found if seq in documents]

    def _in_one_state(self, read: Callable[[], T]) -> T:
        """Call `read` while index and database agree."""
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
        found = self._closest(vector, k, condition)
        documents = self._database.documents([seq for seq, _ in found])
        # Within one state of the store none is missing; a result from two states is discarded by the caller.
        return [(seq, documents[seq], score) for seq, score in found if seq in documents]

    def _closest(self, vector: FloatArray, k: int, condition: Condition | None) -> list[tuple[int, float]]:
        among = None if condition is None else self._filtered.seqs(*condition, self._cache.deletions)
        scores, seqs = self._cache.find(vector, k, among)
        return list(zip(seqs.tolist(), scores.clip(-1, 1).tolist(), strict=True))  # rounding may exceed 1

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

    def varied_words(
        self, question: str, k: int, fetch_k: int, lambda_mult: float, where: Mapping[str, Any] | None
    ) -> list[tuple[Document, float]]:
        """Return (document, BM25) of k of the `fetch_k` best matches, by `mmr_order` of their words."""
        hits = self.matching(question, fetch_k, where)
        scores = np.array([score for _, score in hits])
        rows = bags(document.text for document, _ in hits)
        return [hits[n] for n in mmr_order(scores / scores.max(initial=1e-9), rows, k, lambda_mult)]

    def documents(self, ids: Sequence[str]) -> list[Document]:
        """Return the documents with these ids, in this order, without unknown ids."""

        def read() -> list[Document]:
            seqs = [seq for seq in self._database.seqs_of_ids(ids) if seq is not None]
            documents = self._database.documents(seqs)
            return [documents[seq] for seq in seqs]

        with self._lock.reading():
            return self._database.at_once(read)

    def vectors(self, ids: Sequence[str]) -> FloatArray:
        """Return the (N, D) unit vectors of these passages, in this order, without unknown ids."""

        def read() -> FloatArray:
            seqs = [seq for seq in self._database.seqs_of_ids(ids) if seq is not None]
            ascending, places = np.unique(np.array(seqs, np.int64), return_inverse=True)
            return self._vectors(ascending)[places]

        with self._lock.reading():
            return self._database.at_once(read)

    def _vectors(self, seqs: IdArray) -> FloatArray:
        """Return the (N, D) unit vectors of N existing passages, given in ascending order."""
        parts = [rows for _, rows in self._database.vectors(seqs)]
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def _condition(where: Mapping[str, Any] | None) -> Condition | None:
    """Compile a filter to SQL; None for a filter that matches everything."""
    condition = compile_filter(where)
    return condition if where else None


def fused(rankings: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
    """Return (seq, score) of all seqs in the rankings, best first: the sum of 1 / (60 + rank), ranks from 1.

    Cormack, Clarke and Buettcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods",
    2009, section 1.
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, seq in enumerate(ranking, start=1):
            scores[seq] = scores.get(seq, 0.0) + 1 / (_DAMPING + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def bags(texts: Iterable[str]) -> FloatArray:
    """Return (N, V) unit vectors of the logarithmic counts of V words in N texts."""
    counts = [Counter(words.cut(text)) for text in texts]
    columns = {word: column for column, word in enumerate(dict.fromkeys(word for bag in counts for word in bag))}
    rows = np.zeros((len(counts), len(columns)), np.float32)
    for row, bag in zip(rows, counts, strict=True):
        for word, count in bag.items():
            row[columns[word]] = 1 + np.log(count)
    return unit_rows(rows)


def mmr_order(relevance: NDArray[np.float64], vectors: FloatArray, k: int, lambda_mult: float) -> list[int]:
    """Return the indices of up to k of N candidates by maximal marginal relevance.

    Carbonell and Goldstein, "The use of MMR, diversity-based reranking", 1998, section 2.

    Args:
        relevance: (N,) cosines with the question.
        vectors: (N, D) unit vectors.
        k: number of candidates to select.
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
