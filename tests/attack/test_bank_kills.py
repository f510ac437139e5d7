"""A folder of memories that processes fill, read and empty, killed at any step: every entry there is, is whole."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from test_memory_kills import killed

from forks import fork
from memograft import Bank, Engine, MemoryHandle
from memograft.errors import MemoryFormatError
from memograft.storage import publish
from test_engine import FACTS
from test_memory_handle import LORA

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

PROCESSES, ROUNDS = 3, 6


@pytest.fixture
def handles(engine: Engine) -> list[MemoryHandle]:
    return [engine.memorize([fact], LORA) for fact in FACTS]


def all_whole(folder: Path, engine: Engine, handles: list[MemoryHandle]) -> set[str]:
    """The ids in the folder once it is opened again, each of which loads; nothing else is there but pins."""
    bank = Bank(folder)
    ids = {entry.id for entry in bank.entries()}
    assert ids <= {handle.id for handle in handles}
    for id in ids:
        found = bank.get(id, engine._backbone)
        assert found is not None
        assert found.id == id
    assert bank.statistics.damaged == 0
    assert {path.name.removesuffix(".pin") for path in folder.iterdir()} <= {handle.id for handle in handles}
    return ids


def test_a_kill_at_every_step(
    engine: Engine, handles: list[MemoryHandle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Counter[str]
) -> None:
    """Of a process that keeps one memory and, for want of room, removes another."""
    tell = [lambda: None]
    for module, name in (
        (os, "replace"),
        (os, "rename"),
        (os, "fsync"),
        (os, "utime"),
        (os, "rmdir"),
        (os, "unlink"),
        (publish, "_exchanged"),
    ):
        real = getattr(module, name)

        def told(*args: object, real: object = real, **options: object) -> object:
            tell[0]()
            made = real(*args, **options)  # type: ignore[operator]
            tell[0]()
            return made

        monkeypatch.setattr(module, name, told)
    step = 0
    while True:
        folder = tmp_path / f"{step}"
        Bank(folder).put(handles[0])
        size = Bank(folder).entries()[0].size

        def keep_another(at_a_step: object, folder: Path = folder, size: int = size) -> None:
            tell[0] = at_a_step  # type: ignore[assignment]
            bank = Bank(folder, max_bytes=size + size // 2)
            bank.put(handles[1])
            bank.get(handles[1].id, engine._backbone)

        reached = killed(keep_another, step := step + 1)
        left = all_whole(folder, engine, handles)
        assert left, "the old one or the new one, or both"
        if not reached:
            assert left == {handles[1].id}
            break
        tally.update(kills=1)
    assert step > 10


def work(folder: Path, engine: Engine, handles: list[MemoryHandle], seed: int, told: int) -> None:
    """Put, get, pin and empty at random until killed; a line for each call."""
    rng = random.Random(seed)
    while True:
        bank = Bank(folder)
        for _ in range(20):
            handle = rng.choice(handles)
            call = rng.choice(["put", "put", "get", "gc", "pin"])
            if call == "put":
                bank.put(handle)
            elif call == "get":
                bank._held.clear()  # from the disk
                found = bank.get(handle.id, engine._backbone)
                assert found is None or found.id == handle.id
                assert bank.statistics.damaged == 0
            elif call == "gc":
                bank.gc(rng.choice([1, 100_000]))
            else:
                with suppress(MemoryFormatError):  # there is none, or another process has removed it
                    bank.unpin(handle.id) if rng.random() < 0.7 else bank.pin(handle.id)
            os.write(told, b".")


def start(*args: object) -> int:
    child = fork()
    if child == 0:
        try:
            work(*args)  # type: ignore[arg-type]
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)
    return child


def test_processes_that_share_a_folder_are_killed(
    engine: Engine, handles: list[MemoryHandle], tmp_path: Path, rng: random.Random, effort: int, tally: Counter[str]
) -> None:
    for _ in range(ROUNDS * effort):
        read, write = os.pipe()
        children = [start(tmp_path, engine, handles, rng.randrange(2**32), write) for _ in range(PROCESSES)]
        os.close(write)
        try:
            for _ in range(rng.randrange(30, 90)):
                assert os.read(read, 1), "all of them failed"
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
            ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            os.close(read)
        assert ended == [-signal.SIGKILL] * PROCESSES
        tally.update(kills=PROCESSES)
        all_whole(tmp_path, engine, handles)
