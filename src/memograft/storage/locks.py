"""The two locks of a store: readers against the writer inside a process, writers against each other outside.

FAISS indexes may be searched by many threads at once but not while one of them changes them, hence
`ReadWriteLock`. `WriterLock` is an advisory lock on a file; the kernel drops it when the process dies, however it
dies, so it can never be left behind. Neither knows what it protects. Below them, what forks make of locks.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from memograft.errors import StoreError, StoreLockedError

_POLL = 0.05  # seconds between two tries: flock itself waits without a limit


class ReadWriteLock:
    """Many readers or one writer. A waiting writer goes before new readers, so it cannot starve. Not re-entrant.

    Python may raise KeyboardInterrupt after any call and at the start of any function, and so between a lock's
    `acquire` and the `try` behind it, or in an `__exit__` before its first line; but not while a lock of C takes itself
    for a `with` and lets itself go. Hence what `reading` and `writing` hold is let go by such a lock's own `__exit__`.
    """

    def __init__(self) -> None:
        self._gate = threading.RLock()  # held by a writer all the time, by a reader while it enters
        self._readers: list[threading.Lock] = []  # each held by a reader until it has finished

    def reading(self) -> _Reading:
        """Hold the lock together with other readers."""
        return _Reading(self)

    def writing(self) -> _Writing:
        """Hold the lock alone."""
        return _Writing(self)


class _Reading:
    __slots__ = ("__exit__", "_lock", "_mine")

    def __init__(self, lock: ReadWriteLock) -> None:
        self._lock = lock
        self._mine = threading.Lock()
        self.__exit__ = self._mine.__exit__

    def __enter__(self) -> None:
        self._mine.acquire()  # nobody else knows it yet
        try:
            with self._lock._gate:
                self._lock._readers = [reader for reader in self._lock._readers if reader.locked()]
                self._lock._readers.append(self._mine)
        except BaseException:
            self._mine.release()
            raise


class _Writing:
    __slots__ = ("__exit__", "_lock")

    def __init__(self, lock: ReadWriteLock) -> None:
        self._lock = lock
        self.__exit__ = lock._gate.__exit__

    def __enter__(self) -> None:
        try:
            self._lock._gate.acquire()
            for reader in self._lock._readers:
                with reader:  # wait until it has finished
                    pass
        except BaseException:
            try:  # noqa: SIM105 - contextlib.suppress is of Python, so an interrupt could come before the release
                self._lock._gate.release()
            except RuntimeError:  # it was another thread's, and we were waiting for it
                pass
            raise


class WriterLock:
    """The right to write to a store, held from construction until `release()` or the end of the process.

    Args:
        file: what is locked, in the store's folder.
        timeout: seconds to wait while someone else holds it. Who of several that wait is next is up to chance.

    Raises:
        StoreLockedError: someone else holds it, in this process or another, and has not let go within `timeout`.
    """

    def __init__(self, file: Path, timeout: float = 0.0) -> None:
        self._fcntl = _file_locks()
        self._owner = os.getpid()
        self._file = open(file, "a", encoding="utf-8")  # noqa: SIM115 - held open on purpose: closing releases it
        end = time.monotonic() + timeout
        try:
            while not self._taken():
                left = end - time.monotonic()
                if left <= 0:
                    waited = f", and did not close it within the `lock_timeout` of {timeout:g} s" if timeout else ""
                    raise StoreLockedError(
                        f"one writer at a time may open a store, and {file.parent} has one already{waited}; close it "
                        "there, wait for it with a longer `lock_timeout`, or open this one with read_only=True"
                    )
                time.sleep(min(_POLL, left))
        except BaseException:
            self._file.close()
            raise

    def _taken(self) -> bool:
        try:
            self._fcntl.flock(self._file, self._fcntl.LOCK_EX | self._fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let the next writer in, even while a forked child has the file open too."""
        if os.getpid() == self._owner and not self._file.closed:
            self._fcntl.flock(self._file, self._fcntl.LOCK_UN)
        self._file.close()


def _file_locks() -> ModuleType:
    try:
        import fcntl
    except ImportError as error:
        raise StoreError(
            "a store on disk needs POSIX file locks, which this system lacks; leave `path` out for a store in "
            "memory, or run under Linux, macOS or WSL"
        ) from error
    return fcntl


def refuse_fork(folder: Path, owner: int) -> None:
    """Refuse to write to what another process has open.

    Raises:
        StoreLockedError: this is a fork of it.
    """
    if os.getpid() != owner:
        raise StoreLockedError(
            f"{folder} is written by the process {owner}, which opened it, and {os.getpid()} is a fork of it; write "
            "there, or close it there and open it here"
        )


_made: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary()  # owner -> its method


def made_anew_in_forks(make: Callable[[], None]) -> None:
    """Call a method that makes its object's locks, now and in every child that is forked from this process.

    A thread that holds a lock while another one forks is not in the child, where nobody would ever let it go.
    """
    make()
    _made[make.__self__] = make.__name__  # type: ignore[attr-defined]


def held_in_forks(lock: threading.RLock) -> threading.RLock:
    """A lock that whoever forks holds meanwhile, so that no thread is in the middle of what it guards.

    For libraries with locks of their own, which a child would find held for ever.
    """
    with _no_fork:
        _held.add(lock)
    return lock


_no_fork = threading.RLock()
_held: weakref.WeakSet[threading.RLock] = weakref.WeakSet()
_taken: list[threading.RLock] = []  # by the fork that goes on


def _before_fork() -> None:
    _no_fork.acquire()
    for lock in list(_held):
        lock.acquire()
        _taken.append(lock)


def _after_fork() -> None:
    while _taken:
        _taken.pop().release()
    _no_fork.release()


def _in_child() -> None:
    _after_fork()
    for owner, name in list(_made.items()):
        getattr(owner, name)()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)
