"""Temporary folders that are deleted with the object they belong to, by the process that made them."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
import weakref
from pathlib import Path

from memograft.errors import StoreError

__all__ = ["goes_with", "new_folder"]


def new_folder() -> Path:
    """Make an empty temporary folder.

    Raises:
        StoreError: it cannot be made.
    """
    try:
        return Path(tempfile.mkdtemp(prefix="memograft-"))
    except OSError as error:
        raise StoreError(
            f"a temporary folder could not be made ({error}); set TMPDIR to a folder with room, or pass `path`"
        ) from error


def goes_with(owner: object, folder: Path) -> weakref.finalize[[Path, int], object]:
    """Delete the folder with its owner, at exit, or when the result is called; never in a forked child."""
    return weakref.finalize(owner, _remove, folder, os.getpid())


def _remove(folder: Path, process: int) -> None:
    if os.getpid() != process:
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        shutil.rmtree(folder, ignore_errors=True)
    else:  # garbage collection may run inside an event loop, which must not be blocked
        threading.Thread(target=shutil.rmtree, args=(folder, True), name="memograft-remove").start()
