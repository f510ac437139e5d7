"""RTD in NumPy and float64, one row and one entry at a time, with sorting, dictionaries and loops."""

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


def calibrated(
    keys: NDArray, values: Sequence[int], sources: Sequence[int], *, k: int, squared: bool = True
) -> tuple[float, float]:
    """(T, gate): every entry predicts its own token from all entries of other sources."""
    count = len(values)
    measured = [[math.dist(a, b) ** 2 for b in keys.tolist()] for a in keys.tolist()]
    nearest, other, asked = [], [], []
    for i in range(count):
        elsewhere = sorted((measured[i][j], values[j]) for j in range(count) if sources[j] != sources[i])[:k]
        asked.append([(d if squared else math.sqrt(d), v == values[i]) for d, v in elsewhere])
        nearest.append(elsewhere[0][0])
        other.append(min(measured[i][j] for j in range(count) if values[j] != values[i]))
    gate = min(float(np.median(nearest)), float(np.median(other)) / 2)

    def likelihood(t: float) -> float:
        total = 0.0
        for i in range(count):
            powers = [math.exp(-(d - asked[i][0][0]) / t) for d, _ in asked[i]]
            r = sum(p for p, (_, same) in zip(powers, asked[i], strict=True) if same) / sum(powers)
            total += math.log((r + list(values).count(values[i]) / count) / 2)
        return total / count

    scale = float(np.median([found[0][0] for found in asked]))
    return max((scale * 2.0 ** (n / 2) for n in range(9, -17, -1)), key=likelihood), gate
