"""Ctrl-C at every point where Python can raise it: no lock stays locked, no write is lost or partial.

Python checks for signals at the start of Python functions and after every call of a C function. These are the events
"call" and "c_return" of a profile function, so raising at the n-th event simulates a Ctrl-C there. All n are tried, in
long calls every few; another process gets real signals at random times.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
from test_vector_store_kills import SOURCE, apply, open_store, operation

from memograft.documents import Document
from memograft.passages.vector_store import VectorStore

T = TypeVar("T")
FIRST = [Document("abc", "a", {"n": 1}), Document("bcd", "b", {"n": 2}), Document("cde", "c", {"n": 3})]
NEXT = [Document("fgh", "b", {"n": 4}), Document("ghi", "d", {"n": 5})]


def interrupted(call: Callable[[], object], at: int) -> tuple[bool, BaseException | None]:
    """Raise KeyboardInterrupt at the n-th event of a call; return whether it was reached, and what the call raised."""
    events = count()

    def profile(_: Any, event: str, __: Any) -> None:
        if event in ("call", "c_return") and next(events) == at:
            raise KeyboardInterrupt

    error = None
    try:
        sys.setprofile(profile)
        call()
    except KeyboardInterrupt as raised:
        error = raised
    finally:
        sys.setprofile(None)
    return next(events) > at, error


def elsewhere(call: Callable[[], T]) -> T:
    """The call's result in another thread, which would block on a lock that this thread has left locked."""
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    thread.join(60)
    assert results, "it waits for a lock, or failed"
    return results[0]


def contents(store: VectorStore) -> dict[str, Document]:
    """The store's contents, which search and filters must find too."""
    kept = {document.id: document for document in store}
    assert {hit.document.id: hit.document for hit in store.search("abc", k=1000)} == kept
    assert {hit.document.id for hit in store.search("abc", k=1000, where={"$id": list(kept)})} == set(kept)
    assert store.get(list(kept)) == list(kept.values())
    return kept


EVERY = {"search": 2, "mmr": 5, "persist": 5, "compact": 7, "close": 9}
CALLS = {
    "add": lambda store: store.add(NEXT),
    "delete": lambda store: store.delete(["a", "b"]),
    "delete by a filter": lambda store: store.delete(where={"n": {"$lt": 3}}),
    "search": lambda store: store.search("abc", k=2, where={"n": {"$gte": 0}}),
    "mmr": lambda store: store.mmr("abc", k=2),
    "get": lambda store: store.get(["a"]),
    "persist": lambda store: store.persist(),
    "compact": lambda store: store.compact(),
    "close": lambda store: store.close(),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # interrupted garbage collection
@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_at_every_point_of_a_call(tmp_path: Path, name: str, tally: Counter[str]) -> None:
    before = {document.id: document for document in FIRST}
    after = dict(before)
    if name == "add":
        after |= {document.id: document for document in NEXT}
    elif name.startswith("delete"):
        del after["a"], after["b"]
    store = open_store(tmp_path, "hnsw")
    store._database.rows("PRAGMA synchronous = OFF")  # speeds up; there is no power cut
    for at in count(step=EVERY.get(name, 1)):
        store.delete(where={})
        store.add(FIRST)
        reached, error = interrupted(partial(CALLS[name], store), at)  # the traceback keeps the frames alive
        if name == "close":
            elsewhere(store.close)
            store = elsewhere(partial(open_store, tmp_path, "hnsw"))
        kept = elsewhere(partial(contents, store))
        assert kept in (before, after), at
        assert error or kept == after
        elsewhere(partial(store.add, [Document("xyz", "new")]))
        assert len(store) == len(kept) + 1
        if not reached:
            break
        tally.update(interrupts=1)
    assert at > 20
    store.close()
    with open_store(tmp_path, "hnsw") as again:
        assert set(contents(again)) == {*kept, "new"}


def child(folder: Path, seed: int) -> None:
    """Interrupt operations with a timer, and compare the store with a dict."""
    rng, model, cut_off = random.Random(seed), {}, 0
    usual = dict.fromkeys(("add", "delete", "persist", "compact", "search"), 0.001)  # typical duration in seconds
    armed = False

    def interrupt(*_: object) -> None:
        if armed:
            raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    store = open_store(folder, "hnsw")
    for number in range(250):
        name, items = operation(number)
        call = partial(getattr(store, name), *[items] if items else [])
        if number % 4 == 3:
            name, call = "search", partial(store.search, "abc", k=9)
        after = apply(model, number) if name in ("add", "delete") else model
        started, held = time.perf_counter(), None
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, 1e-6 + 1.2 * usual[name] * rng.random())
            call()
            armed = False
            usual[name] = time.perf_counter() - started
        except KeyboardInterrupt as error:
            armed = False
            held = error  # keeps the interrupted frames alive
            usual[name] *= 1.1
        cut_off += held is not None
        kept = elsewhere(partial(contents, store))
        assert kept in ((model, after) if held else (after,)), (number, name)
        model = kept
    store.close()
    with open_store(folder, "hnsw") as again:
        assert contents(again) == model
    print(cut_off)


def test_signals_at_any_time(tmp_path: Path, rng: random.Random, tally: Counter[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, str(tmp_path), str(rng.randrange(2**32))],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    tally.update(interrupts=int(run.stdout))
    assert int(run.stdout) > 50


if __name__ == "__main__":
    child(Path(sys.argv[1]), int(sys.argv[2]))
