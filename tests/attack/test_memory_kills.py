"""A process is repeatedly killed while it overwrites a memory: the old or the new one remains, complete."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forks import fork
from memograft import Engine
from memograft.storage import publish
from test_engine import FACTS
from test_memory_handle import LORA

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def killed(save: Callable[[Callable[[], None]], None], step: int) -> bool:
    """Fork a child that saves, and kill it at its `step`-th step; False if it has fewer steps."""
    told, waits = os.pipe()
    goes_on, go = os.pipe()

    def at_a_step() -> None:
        os.write(waits, b".")
        os.read(goes_on, 1)

    child = fork()
    if child == 0:
        code = 1
        try:
            save(at_a_step)
            code = 0
        finally:
            os._exit(code)
    os.close(waits)
    reached = 0
    while reached < step and os.read(told, 1):
        reached += 1
        if reached < step:
            os.write(go, b".")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for end in (told, goes_on, go):
        os.close(end)
    return reached == step


@pytest.mark.parametrize("exchange", [True, False])
def test_a_kill_loses_nothing_and_leaves_nothing(
    engine: Engine, tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch, tally: Counter[str]
) -> None:
    """Killed before and after every move, removal and flush."""
    handles = [engine.memorize(FACTS[:1], LORA), engine.memorize(FACTS, LORA)]
    ids, path = {handle.id for handle in handles}, tmp_path / "parent" / "memory"
    if not exchange:
        monkeypatch.setattr(publish, "_exchanged", lambda *_: False)
    handles[0].save(path)
    tell: list[Any] = [lambda: None]
    for module, name in ((os, "replace"), (os, "fsync"), (shutil, "rmtree"), (publish, "_exchanged")):
        real = getattr(module, name)

        def told(*args: Any, real: Any = real, **options: Any) -> Any:
            tell[0]()
            made = real(*args, **options)
            tell[0]()
            return made

        monkeypatch.setattr(module, name, told)

    def save(step: Callable[[], None]) -> None:
        tell[0] = step
        handles[1].save(path)

    step = 0
    while killed(save, step := step + 1):
        tally.update(kills=1)
        if step % 2:  # recovery happens when reading or when writing
            assert engine.load_memory(path).id in ids
        tell[0] = lambda: None
        handles[0].save(path)
        assert engine.load_memory(path).id == handles[0].id
        assert [p.name for p in path.parent.iterdir()] == ["memory"]
    assert step > 10
    assert engine.load_memory(path).id == handles[1].id
