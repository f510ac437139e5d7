"""Writers of several processes at one store: an error at once, or waiting, according to `lock_timeout`."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from memograft import Datastore, VectorStore
from memograft.errors import SettingsError, StoreLockedError
from memograft.storage import locks
from test_cli import run_json
from test_datastore import new, synthetic

HOLD = """
import sys
from memograft import {kind}
with {kind}.open(sys.argv[1]):
    print("open", flush=True)
    sys.stdin.read(1)
"""
TAKE_TURNS = """
import math, sys
from memograft import VectorStore
for n in range(5):
    with VectorStore(path=sys.argv[1], lock_timeout=math.inf) as store:
        store.add([{"text": "A page.", "id": f"{sys.argv[2]}-{n}"}])
"""


@contextmanager
def held(kind: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has the store open for writing until it receives a byte."""
    command = [sys.executable, "-W", "ignore", "-c", HOLD.format(kind=kind), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield process
        process.communicate()
        assert process.returncode == 0


@pytest.fixture(params=["VectorStore", "Datastore"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    folder = tmp_path / "store"
    if request.param == "VectorStore":
        with VectorStore(path=folder) as made:
            made.add(["A page."])
        return VectorStore, folder
    with new(folder, "flat") as learned:
        learned.extend(*synthetic(40, sources=4))
    return Datastore, folder


def test_a_second_writer_fails_at_once_or_after_its_time_and_a_reader_does_not(store: tuple[Any, Path]) -> None:
    kind, folder = store
    with held(kind.__name__, folder):
        with pytest.raises(StoreLockedError, match=f"one writer at a time may open a store, and {folder} has one"):
            kind.open(folder)
        waited = (
            r"did not close it within the `lock_timeout` of 0.1 s; .* a longer `lock_timeout`, or .* read_only=True"
        )
        started = time.monotonic()
        with pytest.raises(StoreLockedError, match=waited):
            kind.open(folder, lock_timeout=0.1)
        assert time.monotonic() - started >= 0.1
        with kind.open(folder, read_only=True, lock_timeout=60) as reader:
            assert len(reader)
    kind.open(folder).close()


@pytest.mark.parametrize("timeout", [600, math.inf])
def test_a_second_writer_waits_until_the_first_process_closes(
    store: tuple[Any, Path], timeout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, folder = store
    naps, real = [], time.sleep

    def nap(seconds: float) -> None:
        if not naps:
            os.write(first.stdin.fileno(), b".")  # lets the other process close, now that we wait
        naps.append(seconds)
        real(seconds)

    with held(kind.__name__, folder) as first:
        monkeypatch.setattr(locks.time, "sleep", nap)
        kind.open(folder, lock_timeout=timeout).close()
    assert naps


def test_a_writer_that_is_killed_leaves_no_lock(store: tuple[Any, Path]) -> None:
    kind, folder = store
    command = [sys.executable, "-W", "ignore", "-c", HOLD.format(kind=kind.__name__), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    kind.open(folder).close()


def test_processes_that_take_turns_lose_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    command = [sys.executable, "-W", "ignore", "-c", TAKE_TURNS, str(folder)]
    writers = [subprocess.Popen([*command, name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    with VectorStore.open(folder, read_only=True) as made:
        assert {d.id for d in made} == {f"{name}-{n}" for name in "abc" for n in range(5)}
        made.verify()


@pytest.mark.parametrize("timeout", [-1, math.nan, "5", None, True])
def test_a_timeout_that_is_none(store: tuple[Any, Path], timeout: Any) -> None:
    kind, folder = store
    with pytest.raises(SettingsError, match=r"`lock_timeout` must be a number of seconds, 0 \(do not wait\) or more"):
        kind.open(folder, lock_timeout=timeout)


def test_an_interrupt_while_waiting_leaves_the_lock_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with VectorStore(path=tmp_path) as first:
        with monkeypatch.context() as patch:
            patch.setattr(locks.time, "sleep", interrupt)
            with pytest.raises(KeyboardInterrupt):
                VectorStore(path=tmp_path, lock_timeout=60)
        first.add(["A page."])
    VectorStore(path=tmp_path).close()


def test_the_command_line_waits_too(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("A page.")
    with VectorStore(path=tmp_path / "store"):
        waiting = ("index", tmp_path / "docs", "--store", tmp_path / "store", "--lock-timeout", 0.1)
        assert "within the `lock_timeout` of 0.1 s" in run_json(*waiting, code=1)["error"]
