"""What a datastore learns of its own distances: the temperature that predicts it best, and how near is near.

    r_T(v_i | k_i) = sum of w_j over the K entries j nearest to k_i, of other sources, with v_j = v_i
    w = softmax(-d / T)
    T = argmax  mean_i log( r_T(v_i | k_i) / 2 + u(v_i) / 2 )       u: how frequent a token is in the datastore

Leaving the whole source out, and all that answer alike, is what a new question meets. The gate is the median squared
distance to the nearest entry of another source, but at most half of that to the nearest entry with another next token:
the sources of a small datastore are far from each other, and everything would be near. Ours: the paper copies a
constant, which fits the scale of one model's states only, and has no gate.
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
_ROUNDING = 1e-4  # of a squared norm: states of bfloat16 differ by that much
_GRID = 2.0 ** np.arange(-8, 5, 0.5)  # times the median distance to the nearest


def calibrate(entries: Entries, dead: NDArray[np.bool_] | None) -> Calibration:
    """Return {"temperature": {"squared": T, "plain": T}, "gate": squared distance, "sample": entries looked at}.

    Empty where there are no entries. States that come out of a batch of another size differ by rounding, so no gate is
    narrower than that. Where no source predicts another's tokens (as with one source), T is a quarter of the gate.
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
    """(N,) one number for all sources that hold the same tokens: facts that were learned twice, or in several words."""
    order = np.lexsort((entries.positions, entries.sources))
    _, starts = np.unique(entries.sources[order], return_index=True)
    seen: dict[bytes, int] = {}
    numbers = [seen.setdefault(v.tobytes(), len(seen)) for v in np.split(entries.values[order], starts[1:])]
    found = np.empty(len(order), np.int32)
    found[order] = np.repeat(numbers, np.diff([*starts, len(order)]))
    return found


def _temperature(distances: NDArray[np.float64], same: NDArray[np.bool_], frequency: NDArray[np.float64]) -> float:
    """The T of the grid under which the datastore's own tokens are likeliest."""
    scale = float(np.median(distances[:, 0])) or float(distances[np.isfinite(distances)].mean()) or 1.0

    def likelihood(t: float) -> float:
        weights = np.exp(-(distances - distances[:, :1]) / t)
        r = (weights * same).sum(1) / weights.sum(1)
        return float(np.log((r + frequency) / 2).mean())

    return float(max((scale * _GRID).tolist()[::-1], key=likelihood))  # of equals the smoothest


def _others(
    entries: Entries, picked: NDArray[np.int64], dead: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Squared distances and numbers (S, K) of the entries of other sources nearest to those picked, and the squared
    distances (S,) to the nearest of all that have another next token; infinite where there is none.
    """
    queries, center = entries.keys[picked].astype(np.float64), entries.keys[picked].mean(0, dtype=np.float64)
    own = queries - center  # centred, the product below cancels less
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
