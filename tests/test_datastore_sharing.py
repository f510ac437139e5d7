"""One datastore in many threads, and in a fork of its owner's process."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from forks import fork, in_a_fork
from memograft import Datastore, Engine, VectorStore
from memograft.errors import StoreLockedError
from memograft.rtd.files import Entries, Files
from memograft.storage.locks import WriterLock
from test_datastore import assert_alike, contents, new, synthetic
from test_rtd_reference import EXAMPLES

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def test_what_threads_add_at_the_same_time_is_all_there(tmp_path: Path) -> None:
    """And deleted sources are gone, while another thread compacts."""
    with new(tmp_path / "store", "flat") as store:
        store.extend(*synthetic(40, sources=4, prefix="gone"))

        def add(worker: int) -> None:
            for n in range(6):
                store.extend(*synthetic(30, sources=3, prefix=f"{worker}-{n}-"))

        with ThreadPoolExecutor(6) as pool:
            jobs = [pool.submit(add, worker) for worker in range(4)]
            jobs += [pool.submit(store.delete, [f"gone{n}" for n in range(4)]), pool.submit(store.compact)]
            for job in jobs:
                job.result()
        expected = {
            source.id for w in range(4) for n in range(6) for source in synthetic(30, sources=3, prefix=f"{w}-{n}-")[1]
        }
        assert set(store.ids()) == expected
    with Datastore.open(tmp_path / "store", read_only=True) as again:
        assert set(again.ids()) == expected
        assert len(again) == 4 * 6 * 30
        assert again.nearest(np.zeros((1, 16), np.float32), 5).values.shape == (1, 1, 5)


def test_threads_that_learn_the_same_examples_learn_them_once(engine: Engine, tmp_path: Path) -> None:
    with Datastore.build(engine, [], path=tmp_path / "store", progress=False) as store:
        with ThreadPoolExecutor(4) as pool:
            added = [pool.submit(store.add, engine, EXAMPLES, progress=False) for _ in range(4)]
        assert sum(job.result() for job in added) == len(EXAMPLES) == len(store.ids())


def test_an_interrupt_keeps_what_was_learned_and_doubles_nothing(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, calls = Files.append, count()

    def cut_off(files: Files, entries: Entries) -> None:
        append(files, entries)
        if next(calls) == 1:
            raise KeyboardInterrupt

    with Datastore.build(engine, [], path=tmp_path / "store", progress=False) as store:
        with monkeypatch.context() as patch:
            patch.setattr(Files, "append", cut_off)
            with pytest.raises(KeyboardInterrupt):
                store.add(engine, EXAMPLES, batch_size=1, progress=False)
        assert len(store.ids()) == 1
        assert store.add(engine, EXAMPLES, progress=False) == len(EXAMPLES) - 1
        with Datastore.build(engine, EXAMPLES, progress=False) as at_once:
            assert_alike(store, contents(at_once))


def test_a_child_that_ends_leaves_the_temporary_one_to_its_parent(engine: Engine) -> None:
    with Datastore.build(engine, EXAMPLES, progress=False) as store:
        assert in_a_fork(lambda: None) == 0
        assert in_a_fork(store.close) == 0
        assert store.path.exists()
        assert store.nearest(np.zeros((1, 32), np.float32), 2).values.shape == (1, 1, 2)
    assert not store.path.exists()


def test_a_fork_may_not_write_to_its_parents_store(tmp_path: Path) -> None:
    with new(tmp_path / "store", "flat") as store:
        store.extend(*synthetic(40, sources=4, prefix="old"))

        def child() -> None:
            assert store.nearest(np.zeros((1, 16), np.float32), 5).values.shape == (1, 1, 5)
            with pytest.raises(
                StoreLockedError, match=rf"opened for writing by the process {parent}, .* is a fork; write"
            ):
                store.extend(*synthetic(30, sources=3, prefix="new"))

        parent = os.getpid()
        assert in_a_fork(child) == 0
        store.extend(*synthetic(30, sources=3, prefix="new"))
        assert len(store) == 70


def test_close_lets_the_next_writer_in_while_a_child_lives(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path / "writer.lock")
    read, write = os.pipe()
    child = fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)  # keeps the file open until the parent has tried
        lock.release()
        os._exit(0)
    try:
        lock.release()
        WriterLock(tmp_path / "writer.lock").release()
    finally:
        os.close(write)
        os.waitpid(child, 0)
        os.close(read)


def test_a_child_that_closes_a_store_does_not_open_it_to_others(tmp_path: Path) -> None:
    with VectorStore(path=tmp_path / "store") as store:
        store.add(["A page about pumps."])
        assert in_a_fork(store.close) == 0
        with pytest.raises(StoreLockedError, match="one writer at a time"):
            VectorStore(path=tmp_path / "store")
