"""Forks at random times of threads that answer, add and search: the child can do the same, or gets a clear error."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from test_vector_store_kills import LetterEmbedder

from forks import in_a_fork
from gates import until
from memograft import Datastore, Engine, FastMem, Request, Rtd, Sampling, VectorStore
from memograft.documents import Document
from memograft.errors import StoreError, StoreLockedError
from test_datastore import new, synthetic

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

FORKS, CALLS = 12, 4
STATE = np.zeros((1, 16), np.float32)


def requests(steering: Datastore) -> list[Request]:
    plain = Request(
        "What is the capital of France?",
        documents=["The capital of France is Lyon."],
        sampling=Sampling(max_new_tokens=8),
    )
    return [
        plain,
        replace(plain, memory=FastMem()),
        replace(plain, sampling=replace(plain.sampling, temperature=0.8, seed=7)),
        replace(plain, processors=[Rtd(steering)]),
    ]


@pytest.mark.timeout(300)
def test_a_fork_at_any_moment_answers_and_reads_and_may_not_write(
    tiny: Engine, tmp_path: Path, rng: random.Random, effort: int, tally: Counter[str]
) -> None:
    with (
        Datastore.build(tiny, [("What is the capital of France?", "It is Lyon.")], progress=False) as steering,
        VectorStore(LetterEmbedder(), tmp_path / "store") as store,
        new(tmp_path / "datastore", "flat") as datastore,
    ):
        asked = requests(steering)
        alone = [tiny.answer(request).text for request in asked]
        store.add([Document("abc", "first")])
        datastore.extend(*synthetic(30, sources=3, prefix="first"))
        stop, done, acknowledged = threading.Event(), Counter[str](), [0, 0]  # writes: store, datastore

        def answer(n: int) -> None:
            assert tiny.answer(asked[n]).text == alone[n]

        def add(n: int) -> None:
            store.add([Document("bcd", str(n))])
            acknowledged[0] = n + 1

        def extend(n: int) -> None:
            datastore.extend(*synthetic(12, sources=3, prefix=f"{n}-"))
            acknowledged[1] = n + 1

        def search(_: int) -> None:
            assert store.search("abc", k=1)[0].document.id == "first"
            assert datastore.nearest(STATE, 5).values.shape == (1, 1, 5)

        def until_the_end(work: Callable[[int], None], over: int | None = None) -> None:
            for n in count():
                if stop.is_set():
                    return
                work(n if over is None else n % over)
                done[work.__name__] += 1

        def stream(n: int) -> None:
            with tiny.stream(replace(asked[n], memory=None)) as pieces:
                assert "".join(pieces)

        def memorize(n: int) -> None:
            assert tiny.memorize(asked[n].documents).adapter is not None

        def refused(_: int) -> None:
            """The child may not write to what the parent has open."""
            with pytest.raises(StoreError, match="is a fork; open it again in the fork"):
                store.search("abc")
            with pytest.raises(StoreError, match="is a fork; open it again in the fork"):
                store.add(["xyz"])
            for write in (lambda: datastore.extend(*synthetic(3, sources=3)), lambda: datastore.delete(["first0"])):
                with pytest.raises(StoreLockedError, match="is a fork; write there"):
                    write()
            store.close()
            datastore.close()

        def opened(_: int) -> None:
            """Writes that were acknowledged before the fork are there."""
            with VectorStore.open(store_folder, LetterEmbedder(), read_only=True) as reader:
                assert len(reader) > least[0]
                assert reader.search("abc", k=1)[0].document.id == "first"
            with Datastore.open(datastore.path, read_only=True) as entries:
                assert len(entries.ids()) >= 3 + 3 * least[1]

        def inherited(_: int) -> None:
            assert len(datastore.ids()) >= 3 + 3 * least[1]
            assert datastore.nearest(STATE, 5).values.shape == (1, 1, 5)

        store_folder = tmp_path / "store"
        work = [(answer, len(asked)), (answer, len(asked)), (add, None), (extend, None), (search, None)]
        with ThreadPoolExecutor(len(work)) as pool:
            jobs = [pool.submit(until_the_end, *one) for one in work]
            try:
                until(lambda: len(done) == 4 or any(job.done() for job in jobs))
                for _ in range(FORKS * effort):
                    calls = rng.choices([answer, stream, memorize, refused, opened, inherited], k=CALLS)
                    picked = [(call, rng.randrange(len(asked))) for call in calls]
                    least = acknowledged.copy()
                    names = [call.__name__ for call in calls]

                    def child(picked: list[tuple[Callable[[int], None], int]] = picked) -> None:
                        for call, n in picked:
                            call(n)

                    assert in_a_fork(child) == 0, names
                    tally.update(forks=1)
            finally:
                stop.set()
            for job in jobs:
                job.result()
        assert len(store) == 1 + acknowledged[0]
        assert len(datastore.ids()) == 3 + 3 * acknowledged[1]
    assert min(done.values()) > 0
