"""Attention matching (arXiv 2602.16284) by another route: float64, one head, sums over keys written out, scipy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]


def softmax(row: Array) -> Array:
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def importance(scores: Array, values: Array, columns: slice, size: float, at_once: float, noise: float) -> Array:
    """Scores (N, C), values (C, d) -> one number for each of the columns, each error by a least-squares fit."""
    attention = np.array([softmax(row)[columns] for row in scores])
    output = attention @ (values[columns] - values[columns].mean(0)) / size
    ridge = noise * (attention**2).mean(0).sum()

    def error(columns: list[int]) -> float:
        x = np.concatenate([attention[:, columns] / np.sqrt(len(scores)), np.sqrt(ridge) * np.eye(len(columns))])
        y = np.concatenate([output / np.sqrt(len(scores)), np.zeros((len(columns), values.shape[1]))])
        fitted = np.linalg.lstsq(x, y, rcond=None)[0]
        return float(((y - x @ fitted) ** 2).sum())

    found, taken = np.zeros(attention.shape[1]), list[int]()
    while len(taken) < len(found):
        before = error(taken)
        gains = {j: before - error([*taken, j]) for j in range(len(found)) if j not in taken}
        best = sorted(gains, key=lambda j: -gains[j])[: max(1, int(at_once * len(taken)))]
        for j in best:
            found[j] = gains[j]
        taken += best
    return found


def mass(scores: Array, kept: list[int], columns: slice, least: float) -> tuple[Array, float]:
    """The weights w >= least that minimise sum_q share_q (sum_i w_i a_q(i) - 1)^2, and this sum."""
    rows, wanted = [], []
    for row in scores:
        share = softmax(row)[columns].sum()
        inside = softmax(row[columns])
        rows.append(np.sqrt(share) * inside[kept])
        wanted.append(np.sqrt(share) * 1.0)
    m, y = np.array(rows), np.array(wanted)
    above, _ = nnls(m, y - m.sum(1) * least)
    w = above + least
    return w, float(((m @ w - y) ** 2).sum())


def objective(scores: Array, kept: list[int], columns: slice, w: Array) -> float:
    """What `mass` minimises."""
    found = 0.0
    for row in scores:
        share, inside = softmax(row)[columns].sum(), softmax(row[columns])
        found += share * (float((inside[kept] * w).sum()) - 1.0) ** 2
    return found


def values_for(scores: Array, values: Array, kept: list[int], columns: slice, bias: Array, ridge: float) -> Array:
    """The values (t, d) that minimise the distance of the outputs + ridge * the distance to the text's own values."""
    rows, wanted = [], []
    for row in scores:
        share = softmax(row)[columns].sum()
        inside = softmax(row[columns])
        rows.append(share * softmax(row[columns][kept] + bias))
        wanted.append(share * (inside @ values[columns]))
    x, y, own = np.array(rows), np.array(wanted), values[columns][kept]
    weight = np.sqrt(ridge * np.mean((x**2).sum(0)) + 1e-8)
    stacked = np.concatenate([x, weight * np.eye(len(kept))])
    found: Array = np.linalg.lstsq(stacked, np.concatenate([y, weight * own]), rcond=None)[0]
    return found
