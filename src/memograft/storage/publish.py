"""A folder that is there whole or not at all, old or new, whenever the process is killed.

    .<name>-<hex>        being written, or the old one after the two have changed places
    .<name>-<hex>-old    the old one, on systems that cannot let two folders change places at once

Whoever publishes next beside a folder, or misses it, clears up after those who died.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from memograft.storage.disk import sync

__all__ = ["clear_up", "published", "recover", "withdraw"]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """An empty folder for the block to fill; at its end it takes the place of `path`, with what else was in that one.

    A link stays a link: what it points to is replaced. After an error, `path` is as it was.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone_in(path.parent):
        _clear_up(path.parent, _named(path))
        draft = path.parent / f".{path.name}-{uuid.uuid4().hex}"
        draft.mkdir()
        try:
            yield draft
            if path.is_dir():
                _take_along(path, draft)
            for file in (*draft.iterdir(), draft):
                sync(file)
            _move(draft, path)
            sync(path.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def recover(path: Path) -> None:
    """Bring back a folder whose publisher was killed when the old one was gone and the new one not yet there."""
    path = path.resolve()
    if not path.exists() and path.parent.is_dir():
        with _alone_in(path.parent):
            _clear_up(path.parent, _named(path))


def clear_up(parent: Path) -> None:
    """`recover` every folder in `parent`, and remove all that dead publishers left there."""
    if parent.is_dir():
        with _alone_in(parent):
            _clear_up(parent, r"(?P<name>.+)")


def withdraw(path: Path) -> None:
    """Remove a folder in one step: whoever looks finds all of it or nothing."""
    gone = path.parent / f".{path.name}-{uuid.uuid4().hex}"
    with suppress(FileNotFoundError), _alone_in(path.parent):  # or another process was faster; none is publishing
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _clear_up(parent: Path, name: str) -> None:
    """Put back what a dead publisher had moved away, and remove what it left; nobody alive has anything there."""
    left = re.compile(rf"\.{name}-[0-9a-f]{{32}}(-old)?")
    for folder in list(parent.iterdir()):
        match = left.fullmatch(folder.name)
        if match is None:
            continue
        path = parent / match["name"]
        if folder.name.endswith("-old") and not path.exists():
            folder.rename(path)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _named(path: Path) -> str:
    return rf"(?P<name>{re.escape(path.name)})"


def _take_along(old: Path, draft: Path) -> None:
    for file in old.iterdir():
        if not os.path.lexists(draft / file.name):
            if file.is_dir() and not file.is_symlink():
                shutil.copytree(file, draft / file.name, symlinks=True)
            else:
                shutil.copy2(file, draft / file.name, follow_symlinks=False)


def _move(draft: Path, path: Path) -> None:
    if not path.exists():
        os.replace(draft, path)
        return
    if _exchanged(draft, path):
        return
    old = draft.with_name(f"{draft.name}-old")
    os.replace(path, old)
    try:
        os.replace(draft, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Let two folders change places in one step, where system and file system can."""
    if sys.platform != "linux":
        return False
    with suppress(AttributeError):  # an old C library
        names = os.fsencode(one), os.fsencode(other)
        call = ctypes.CDLL(None, use_errno=True).renameat2
        return bool(call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
    return False


@contextmanager
def _alone_in(parent: Path) -> Iterator[None]:
    """Hold a folder's lock, which dies with the process; without one where the system or the file system has none."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(parent, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
