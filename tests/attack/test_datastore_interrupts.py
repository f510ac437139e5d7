"""Ctrl-C at many points of calls that change or search a datastore: it stays usable and consistent."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from test_vector_store_interrupts import elsewhere, interrupted

from memograft import Datastore
from test_datastore import contents, new, synthetic

CALLS = {
    "extend": lambda store: store.extend(*synthetic(12, sources=3, prefix="more")),
    "delete": lambda store: store.delete(["first1"]),
    "compact": lambda store: store.compact(progress=False),
    "search": lambda store: store.nearest(np.zeros((1, 16), np.float32), 3, heads=2),
}


def found(store: Datastore) -> dict[str, list[tuple[int, int, bytes]]]:
    """Its contents, all of which searches must find."""
    held = store.ids()
    kept = contents(store)  # reads internals, so it must follow a call
    assert set(held) == set(kept)
    neighbours = store.nearest(np.zeros((1, 16), np.float32), 1000)
    ids = Counter(store.source(int(number)).id for number in neighbours.sources.flat)
    assert ids == {id: len(entries) for id, entries in kept.items()}
    assert len(store) == ids.total()
    return kept


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # interrupted garbage collection
@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_at_every_few_points_of_a_call(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, tally: Counter[str]
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)  # speeds up; there is no power cut
    first = synthetic(24, sources=4, prefix="first")
    for at in count(step=9):
        with new(tmp_path / str(at), "flat") as store:
            store.extend(*first)
            if name == "compact":
                store.delete(["first2"])
            before = found(store)
            reached, error = interrupted(partial(CALLS[name], store), at)  # the traceback keeps the frames alive
            kept = elsewhere(partial(found, store))
            gone = {"first1"} if name == "delete" else set()
            if name == "extend":
                done = len(kept) == 7
                assert kept == before or (done and {id: kept[id] for id in before} == before), at
            else:
                done = not gone & set(kept)
                assert kept in (before, {id: before[id] for id in before if id not in gone}), at
            assert error or done
            elsewhere(partial(store.extend, *synthetic(6, sources=2, prefix="last")))
            after = found(store)
            assert {id: after[id] for id in kept} == kept
            assert set(after) == {*kept, "last0", "last1"}
            assert store.verify() == []
        with Datastore.open(tmp_path / str(at), read_only=True) as again:
            assert found(again) == after
        if not reached:
            break
        tally.update(interrupts=1)
    assert at > 20
