"""The two locks of a vector store: readers against the writer inside a process, writers against each other outside.

FAISS indexes may be searched by many threads at once but not while one of them changes them, hence
`ReadWriteLock`. `WriterLock` is an advisory lock on a file; the kernel drops it when the process dies, however it
dies, so it can never be left behind. Neither knows what it protects.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memograft.errors import StoreError, StoreLockedError


class ReadWriteLock:
    """Many readers or one writer. A waiting writer goes before new readers, so it cannot starve. Not re-entrant."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._writing = False
        self._waiting_writers = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the lock together with other readers."""
        with self._changed:
            self._changed.wait_for(lambda: not self._writing and not self._waiting_writers)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock alone."""
        with self._changed:
            self._waiting_writers += 1
            try:
                self._changed.wait_for(lambda: not self._writing and not self._readers)
                self._writing = True
            finally:
                self._waiting_writers -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()


class WriterLock:
    """The right to write to a store, held from construction until `release()` or the end of the process.

    Raises:
        StoreLockedError: someone else holds it, in this process or another.
    """

    def __init__(self, file: Path) -> None:
        try:
            import fcntl
        except ImportError as error:
            raise StoreError(
                "a store on disk needs POSIX file locks, which this system lacks; leave `path` out for a store in "
                "memory, or run under Linux, macOS or WSL"
            ) from error
        self._owner = os.getpid()
        self._file = open(file, "a", encoding="utf-8")  # noqa: SIM115 - held open on purpose: closing releases it
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise StoreLockedError(
                f"one writer at a time may open a store, and {file.parent} has one already; close it there, or open "
                "this one with read_only=True"
            ) from error

    def release(self) -> None:
        """Let the next writer in, even while a forked child has the file open too."""
        import fcntl

        if os.getpid() == self._owner and not self._file.closed:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()
