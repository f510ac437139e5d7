"""Write folders atomically: after a crash at any time, a folder is complete and either old or new.

    .<name>-<hex>        a folder being written, or the old one after the two were exchanged
    .<name>-<hex>-old    the old one, on systems that cannot exchange two folders atomically

The next publisher in the same parent folder, or `recover`, removes what crashed ones left.
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

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # Linux constants


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill. At the end it replaces `path`, whose other files are copied into it.

    If `path` is a link, its target is replaced. After an error, `path` is unchanged.
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
    """Restore a folder whose publisher crashed between removing the old one and renaming the new one."""
    path = path.resolve()
    if not path.exists() and path.parent.is_dir():
        with _alone_in(path.parent):
            _clear_up(path.parent, _named(path))


def clear_up(parent: Path) -> None:
    """`recover` every folder in `parent`, and remove everything that crashed publishers left."""
    if parent.is_dir():
        with _alone_in(parent):
            _clear_up(parent, r"(?P<name>.+)")


def withdraw(path: Path) -> None:
    """Remove a folder atomically: readers find all of it or nothing."""
    gone = path.parent / f".{path.name}-{uuid.uuid4().hex}"
    with suppress(FileNotFoundError), _alone_in(path.parent):  # FileNotFoundError: another process has removed it
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _clear_up(parent: Path, name: str) -> None:
    """Restore or remove what crashed publishers left. The caller has the lock, so no publisher is active."""
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
    """Exchange two folders atomically; False if system or file system cannot."""
    if sys.platform != "linux":
        return False
    with suppress(AttributeError):  # an old C library has no renameat2
        names = os.fsencode(one), os.fsencode(other)
        call = ctypes.CDLL(None, use_errno=True).renameat2
        return bool(call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
    return False


@contextmanager
def _alone_in(parent: Path) -> Iterator[None]:
    """Lock a folder until the end of the block or the process; does nothing where locks are not supported."""
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
