"""Doubles for the tests of the vector store: an embedder for which the right results are known."""

from __future__ import annotations

import numpy as np

from memograft.documents import Document
from memograft.passages.vector_store import Hit


class NumberEmbedder:
    """Embeds "7 ..." as the 7th row of a fixed random matrix, so that the right results are known."""

    def __init__(self, dimension: int = 16, rows: int = 4000) -> None:
        self.dimension = dimension
        self.table = np.random.default_rng(0).normal(size=(rows, dimension)).astype(np.float32)
        self.fingerprint = f"number-{dimension}"

    def config(self) -> dict[str, object]:
        return {"type": "number"}

    def embed_documents(self, texts: list[str]) -> np.ndarray:
        return self.table[[int(text.split()[0]) for text in texts]]

    def embed_query(self, text: str) -> np.ndarray:
        return self.table[int(text.split()[0])]


def numbered(numbers, **metadata):
    return [Document(f"{n} text", f"id{n}", {"n": n, **metadata}) for n in numbers]


def brute_force(embedder: NumberEmbedder, numbers: list[int], query: np.ndarray, k: int) -> list[int]:
    """The k best numbers by cosine, computed directly."""
    rows = embedder.table[numbers].astype(np.float64)
    scores = rows @ query / np.linalg.norm(rows, axis=1)
    return [numbers[position] for position in np.argsort(-scores)[:k]]


def found(hits: list[Hit]) -> list[int]:
    return [hit.document.metadata["n"] for hit in hits]
