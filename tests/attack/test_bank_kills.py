"""Processes that write, read and remove entries of a bank are killed at any step: all remaining entries are intact."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from test_memory_kills import killed

from forks import fork
from memograft import Bank, Engine, MemoryHandle
from memograft.errors import MemoryFormatError
from memograft.memory.base import Model
from memograft.memory.prefixes import Place
from memograft.model.kv import Piece
from memograft.storage import publish
from test_engine import FACTS, ask
from test_memory_handle import LORA

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

PROCESSES, ROUNDS = 3, 6


@dataclass(frozen=True)
class Kept:
    """An entry, and how a bank writes and reads it. Read entries are compared by id or by tensors."""

    id: str
    put: Callable[[Bank], None]
    get: Callable[[Bank], bool]


@pytest.fixture(params=["memories", "prefixes"])
def kept(request: pytest.FixtureRequest, make_engine: Callable[..., Engine], tmp_path: Path) -> list[Kept]:
    made: list[Kept] = []
    if request.param == "memories":
        engine = make_engine()

        def is_there(bank: Bank, handle: MemoryHandle) -> bool:
            bank._held.clear()  # forces reading from disk
            found = bank.get(handle.id, engine._backbone)
            assert found is None or found.id == handle.id
            return found is not None

        for fact in FACTS:
            handle = engine.memorize([fact], LORA)
            put, get = partial(Bank.put, handle=handle), partial(is_there, handle=handle)
            made.append(Kept(handle.id, put, get))
        return made

    def same(bank: Bank, model: Model, place: Place, piece: Piece) -> bool:
        found = bank._read_prefix(model, place)
        assert found is None or torch.equal(found.x, piece.x)
        return found is not None

    bank = Bank(tmp_path / "first", prefix_files="exact")
    engine = make_engine(bank=bank)
    bank.prefixes._write = lambda *what: made.append(
        Kept(what[1].id, lambda bank: bank._write_prefix(*what), lambda bank: same(bank, *what))
    )
    for fact in FACTS:
        engine.answer(ask(documents=[fact]))
    return made


def all_whole(folder: Path, kept: list[Kept]) -> set[str]:
    """The ids in the folder after it is opened again. All must load, and there must be no other files except pins."""
    bank = Bank(folder)
    ids = {entry.id for entry in bank.entries()}
    assert ids <= {each.id for each in kept}
    for each in kept:
        assert each.get(bank) == (each.id in ids)
    assert bank.statistics.damaged == 0
    assert {path.name.removesuffix(".pin") for path in folder.iterdir()} <= {each.id for each in kept}
    return ids


def test_a_kill_at_every_step(
    kept: list[Kept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Counter[str]
) -> None:
    """Of a process that keeps one entry and removes another to make room."""
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
        kept[0].put(Bank(folder))
        size = Bank(folder).entries()[0].size

        def keep_another(at_a_step: object, folder: Path = folder, size: int = size) -> None:
            tell[0] = at_a_step  # type: ignore[assignment]
            bank = Bank(folder, max_bytes=size + size // 2)
            kept[1].put(bank)
            kept[1].get(bank)

        reached = killed(keep_another, step := step + 1)
        left = all_whole(folder, kept)
        assert left, "the old one or the new one, or both"
        if not reached:
            assert left == {kept[1].id}
            break
        tally.update(kills=1)
    assert step > 10


def work(folder: Path, kept: list[Kept], seed: int, told: int) -> None:
    """Put, get, pin and remove at random until killed; prints a line for each call."""
    rng = random.Random(seed)
    while True:
        bank = Bank(folder)
        for _ in range(20):
            each = rng.choice(kept)
            call = rng.choice(["put", "put", "get", "gc", "pin"])
            if call == "put":
                each.put(bank)
            elif call == "get":
                each.get(bank)
                assert bank.statistics.damaged == 0
            elif call == "gc":
                bank.gc(rng.choice([1, 100_000]))
            else:
                with suppress(MemoryFormatError):  # does not exist, or another process has removed it
                    bank.unpin(each.id) if rng.random() < 0.7 else bank.pin(each.id)
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
    kept: list[Kept], tmp_path: Path, rng: random.Random, effort: int, tally: Counter[str]
) -> None:
    folder = tmp_path / "bank"
    Bank(folder)
    for _ in range(ROUNDS * effort):
        read, write = os.pipe()
        children = [start(folder, kept, rng.randrange(2**32), write) for _ in range(PROCESSES)]
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
        all_whole(folder, kept)
