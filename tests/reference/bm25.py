"""Naive BM25 over lists of words (Robertson and Zaragoza, 2009), with FTS5's minimum of the IDF."""

from __future__ import annotations

import math

K1, B, FLOOR = 1.2, 0.75, 1e-6


def bm25(texts: list[list[str]], question: set[str]) -> list[float]:
    """The score of each text."""
    mean = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        score = 0.0
        for word in question:
            having = sum(word in other for other in texts)
            rarity = math.log((len(texts) - having + 0.5) / (having + 0.5))
            count = text.count(word)
            saturated = count * (K1 + 1) / (count + K1 * (1 - B + B * len(text) / mean))
            score += (rarity if rarity > 0 else FLOOR) * saturated
        scores.append(score)
    return scores
