"""RTD written once more, in NumPy and float64, one row and one entry at a time: by sorting, dictionaries and loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def neighbours(h: NDArray, keys: NDArray, k: int) -> list[tuple[float, int]]:
    """(plain L2 distance, entry) of the k nearest keys (N, D) to h (D,)."""
    distances = [math.dist(h.tolist(), key.tolist()) for key in keys]
    return sorted((d, n) for n, d in enumerate(distances))[:k]


def votes(
    h: NDArray, keys: NDArray, values: Sequence[int], *, k: int, t: float, heads: int = 1, squared: bool = True
) -> dict[int, float]:
    """r: token -> probability; the mean over heads."""
    width = len(h) // heads
    r: dict[int, float] = {}
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        found = neighbours(h[part].astype(np.float64), keys[:, part].astype(np.float64), k)
        measured = [(heads * d * d if squared else math.sqrt(heads) * d, n) for d, n in found]
        powers = [math.exp(-(d - measured[0][0]) / t) for d, _ in measured]
        for power, (_, n) in zip(powers, measured, strict=True):
            r[int(values[n])] = r.get(int(values[n]), 0.0) + power / sum(powers) / heads
    return r


def mixture(r: dict[int, float], logits: NDArray, weight: float) -> NDArray:
    """p (V,) from r and the model's logits (V,)."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    p = (1 - weight) * powers / powers.sum()
    for token, probability in r.items():
        p[token] += weight * probability
    return p
