"""Kills while building, and full disks: committed data is intact, and nothing is duplicated."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from families import build
from memograft import Datastore, Engine
from memograft.errors import StoreError
from memograft.rtd.files import Files
from test_datastore import contents
from tokenizers_ import make

TESTS = Path(__file__).parents[1]
EXAMPLES = [(f"What is number {n}?", f"It is {n * 7} and {n % 5} of the book.") for n in range(400)]


def child(folder: str, most: int) -> None:
    """Build with a commit after every batch, so that kills hit commits and gaps between them. `most` bytes per file.

    Prints a line after each commit. After 24 of 100 it waits for the kill, so that a slow parent is in time.
    """
    import resource

    from memograft.rtd import datastore

    datastore._COMMIT = 0.0
    commit, count = Files.commit, 0

    def told(self: Files, **changes: Any) -> None:
        nonlocal count
        commit(self, **changes)
        count += 1
        print("commit", flush=True)
        if count >= 24 and not most:
            signal.pause()

    Files.commit = told  # type: ignore[method-assign]
    if most:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    print("started", flush=True)
    with Engine(build("llama"), make("bpe")) as engine:
        try:
            Datastore.build(engine, EXAMPLES, path=folder, batch_size=4, progress=False)
        except StoreError as error:
            print(error, flush=True)


def start(folder: Path, most: int = 0) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent / 'src'}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder), str(most)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "started\n", process.stderr.read()
    return process


@pytest.fixture(scope="module")
def expected(tmp_path_factory: Any) -> dict[str, Any]:
    with (
        Engine(build("llama"), make("bpe")) as engine,
        Datastore.build(engine, EXAMPLES, path=tmp_path_factory.mktemp("whole"), progress=False) as store,
    ):
        return values(store)


def values(store: Datastore) -> dict[str, Any]:
    """The contents without keys, whose last bits depend on the batch."""
    return {id: [(position, value) for position, value, _ in entries] for id, entries in contents(store).items()}


def test_a_build_that_is_killed_goes_on_without_doubles(
    tmp_path: Path, expected: dict[str, Any], rng: random.Random, tally: Counter[str]
) -> None:
    sizes = []
    for _ in range(4):
        process = start(tmp_path)
        assert process.stdout is not None
        for _ in range(rng.randrange(5, 10)):
            assert process.stdout.readline() == "commit\n"
        time.sleep(rng.uniform(0, 0.02))  # somewhere between two commits
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        tally.update(kills=1)
        with Datastore.open(tmp_path) as store:
            kept = values(store)
            assert len(store.ids()) == len(set(store.ids()))
            assert kept == {id: expected[id] for id in kept}  # only complete sources
            sizes.append(len(kept))
    assert sizes == sorted(sizes)
    assert 0 < sizes[0] < sizes[-1] < len(expected), "the kills came too early or too late to say anything"
    with (
        Engine(build("llama"), make("bpe")) as engine,
        Datastore.build(engine, EXAMPLES, path=tmp_path, progress=False) as store,
    ):
        assert values(store) == expected
        assert store.header.calibration["entries"] == len(store)


def test_a_full_disk_loses_nothing(
    tmp_path: Path, expected: dict[str, Any], rng: random.Random, tally: Counter[str]
) -> None:
    process = start(tmp_path, most=rng.randrange(100_000, 200_000))
    out, err = process.communicate(timeout=60)
    tally.update(full_disks=1)
    assert "could not be written ([Errno 27] File too large); its" in out, err
    assert "entries are safe, so free some space and repeat the call" in out
    with Datastore.open(tmp_path, read_only=True) as store:
        kept = values(store)
        assert 0 < len(kept) < len(expected)
        assert kept == {id: expected[id] for id in kept}
    with (
        Engine(build("llama"), make("bpe")) as engine,
        Datastore.build(engine, EXAMPLES, path=tmp_path, progress=False) as store,
    ):
        assert values(store) == expected


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]))
