"""Calibrate a datastore on its own entries: choose the temperature that predicts them best, and the gate.

    r_T(v_i | k_i) = sum of w_j over the K entries j nearest to k_i, of other sources, with v_j = v_i
    w = softmax(-d / T)
    T = argmax  mean_i log( r_T(v_i | k_i) / 2 + u(v_i) / 2 )       u: frequency of a token in the datastore

The whole source of an entry is left out, with all sources of the same answer, because a new question has no entries
either. The gate is the median squared distance to the nearest entry of another source. It is at most half of the median
distance to the nearest entry with another next token, because the sources of a small datastore are far apart, and
everything would be within the gate. The paper has no gate and a constant T, which fits the scale of one model only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memograft.rtd.files import Entries
from memograft.rtd.told import Calibration

__all__ = ["calibrate"]

_SAMPLE = 256
_ROWS = 16_384
_NEIGHBOURS = 32
_ROUNDING = 1e-4  # relative to a squared norm: how much states of bfloat16 can differ
_GRID = 2.0 ** np.arange(-8, 5, 0.5)  # multiples of the median distance to the nearest entry


def calibrate(entries: Entries, dead: NDArray[np.bool_] | None) -> Calibration:
    """Return {"temperature": {"squared": T, "plain": T}, "gate": squared distance, "sample": number of entries used}.

    Empty if there are no entries. The gate has a minimum, because states from batches of different sizes differ by
    rounding. If no source predicts another's tokens (as with one source), T is a quarter of the gate.
    """
    alive = np.flatnonzero(~dead) if dead is not None else np.arange(len(entries.values))
    if not len(alive):
        return {}
    entries = entries._replace(sources=_answers(entries))
    rounding = _ROUNDING * float((entries.keys[alive[:_SAMPLE]].astype(np.float64) ** 2).sum(-1).mean())
    picked = alive[np.linspace(0, len(alive) - 1, min(_SAMPLE, len(alive))).astype(np.int64)]
    distances, ids, otherwise = _others(entries, picked, dead)
    limits = [float(np.median(d)) for d in (distances[:, 0], otherwise / 2) if np.isfinite(d).all()]
    gate = max(min(limits, default=0.0), rounding)
    known = np.isfinite(distances[:, 0])
    distances, ids, picked = distances[known], ids[known], picked[known]
    same = entries.values[ids] == entries.values[picked][:, None]
    if not same.any():
        return {"temperature": {"squared": gate / 4, "plain": gate**0.5 / 4}, "gate": gate, "sample": 0}
    tokens, counts = np.unique(entries.values[alive], return_counts=True)
    frequency = counts[np.searchsorted(tokens, entries.values[picked])] / len(alive)
    return {
        "temperature": {
            "squared": _temperature(distances, same, frequency),
            "plain": _temperature(np.sqrt(distances), same, frequency),
        },
        "gate": gate,
        "sample": len(picked),
    }


def _answers(entries: Entries) -> NDArray[np.int32]:
    """(N,) Number the sources so that those with the same tokens, such as facts learned twice, have the same number."""
    order = np.lexsort((entries.positions, entries.sources))
    _, starts = np.unique(entries.sources[order], return_index=True)
    seen: dict[bytes, int] = {}
    numbers = [seen.setdefault(v.tobytes(), len(seen)) for v in np.split(entries.values[order], starts[1:])]
    found = np.empty(len(order), np.int32)
    found[order] = np.repeat(numbers, np.diff([*starts, len(order)]))
    return found


def _temperature(distances: NDArray[np.float64], same: NDArray[np.bool_], frequency: NDArray[np.float64]) -> float:
    """The T of the grid for which the datastore's own tokens are most likely."""
    scale = float(np.median(distances[:, 0])) or float(distances[np.isfinite(distances)].mean()) or 1.0

    def likelihood(t: float) -> float:
        weights = np.exp(-(distances - distances[:, :1]) / t)
        r = (weights * same).sum(1) / weights.sum(1)
        return float(np.log((r + frequency) / 2).mean())

    return float(max((scale * _GRID).tolist()[::-1], key=likelihood))  # the largest of equally good ones


def _others(
    entries: Entries, picked: NDArray[np.int64], dead: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Distances from S picked entries to others.

    Returns squared distances and numbers (S, K) of the nearest entries of other sources, and squared distances (S,) to
    the nearest entry with another next token; infinite if there is none.
    """
    queries, center = entries.keys[picked].astype(np.float64), entries.keys[picked].mean(0, dtype=np.float64)
    own = queries - center  # centred, for less cancellation in the product below
    best, otherwise = np.full((len(picked), 0), np.inf), np.full(len(picked), np.inf)
    ids = np.zeros((len(picked), 0), np.int64)
    for start in range(0, len(entries.values), _ROWS):
        rows = slice(start, start + _ROWS)
        keys = (entries.keys[rows] - center).astype(np.float32)
        product = own.astype(np.float32) @ keys.T
        distances = ((own**2).sum(1)[:, None] + (keys**2).sum(1)[None] - 2.0 * product).clip(0)
        gone = dead[rows] if dead is not None else False
        alike = entries.values[rows][None] == entries.values[picked][:, None]
        otherwise = np.minimum(otherwise, np.where(alike | gone, np.inf, distances).min(1))
        left = entries.sources[rows][None] == entries.sources[picked][:, None]
        best = np.concatenate([best, np.where(left | gone, np.inf, distances)], 1)
        ids = np.concatenate([ids, np.broadcast_to(np.arange(start, start + len(keys)), distances.shape)], 1)
        order = np.argsort(best, 1, kind="stable")[:, :_NEIGHBOURS]
        best, ids = np.take_along_axis(best, order, 1), np.take_along_axis(ids, order, 1)
    exact = ((entries.keys[ids].astype(np.float64) - queries[:, None]) ** 2).sum(-1)
    return np.where(np.isinf(best), np.inf, exact), ids, otherwise
