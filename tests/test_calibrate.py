"""The calibration of a datastore against a version with loops, and with few entries."""

from __future__ import annotations

import math

import numpy as np
import pytest

from memograft.rtd.calibrate import calibrate
from memograft.rtd.files import Entries
from reference.rtd import calibrated


def entries(sources: int, each: int, seed: int = 0, tokens: int = 6) -> Entries:
    """States near a centre for each token, so that most but not all tokens can be predicted."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, tokens, sources * each).astype(np.int32)
    keys = rng.normal(size=(tokens, 12))[values] * 1.5 + rng.normal(size=(len(values), 12))
    numbers = np.repeat(np.arange(sources, dtype=np.int32), each)
    return Entries(keys.astype(np.float32), values, numbers, np.tile(np.arange(each, dtype=np.int32), sources))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_formula(seed: int) -> None:
    some = entries(12, 8, seed)
    found = calibrate(some, None)
    for squared in (True, False):
        t, gate = calibrated(
            some.keys.astype(float), some.values.tolist(), some.sources.tolist(), k=32, squared=squared
        )
        assert found["temperature"]["squared" if squared else "plain"] == pytest.approx(t, rel=1e-5)
        assert found["gate"] == pytest.approx(gate, rel=1e-5)


def test_dead_entries_are_not_looked_at() -> None:
    some, more = entries(6, 8), entries(4, 8, seed=9)
    both = Entries(*(np.concatenate(pair) for pair in zip(some, more._replace(sources=more.sources + 6), strict=True)))
    dead = np.arange(len(both.values)) >= len(some.values)
    found, expected = calibrate(both, dead), calibrate(some, None)
    assert found["temperature"] == pytest.approx(expected["temperature"])
    assert found["gate"] == pytest.approx(expected["gate"])
    assert calibrate(both, None)["gate"] != pytest.approx(expected["gate"])


def test_what_was_learned_twice_counts_once() -> None:
    some = entries(8, 6)
    order = np.random.default_rng(1).permutation(2 * len(some.values))
    twice = Entries(*(np.concatenate([array, array])[order] for array in some._replace(sources=some.sources)))
    twice = twice._replace(sources=(np.repeat([0, 8], len(some.values)) + np.tile(some.sources, 2))[order])
    found, expected = calibrate(twice, None), calibrate(some, None)
    assert found["gate"] == pytest.approx(expected["gate"])
    assert found["gate"] > 1


def test_one_source_has_a_gate_narrower_than_its_own_distances() -> None:
    some = entries(1, 10)
    found = calibrate(some, None)
    distances = ((some.keys[:, None] - some.keys[None]) ** 2).sum(-1)
    distances[some.values[:, None] == some.values[None]] = np.inf
    assert found["gate"] == pytest.approx(float(np.median(distances.min(1))) / 2, rel=1e-4)
    assert found["temperature"]["squared"] == pytest.approx(found["gate"] / 4)
    assert found["temperature"]["plain"] == pytest.approx(math.sqrt(found["gate"]) / 4)


def test_one_entry_and_one_token_and_none() -> None:
    one = entries(1, 1)
    found = calibrate(one, None)
    assert found["gate"] == pytest.approx(1e-4 * float((one.keys.astype(float) ** 2).sum()))
    assert calibrate(entries(1, 5, tokens=1), None)["gate"] > 0
    assert calibrate(one, np.array([True])) == {}
