"""The two locks of a store: `ReadWriteLock` between threads, and `WriterLock` between processes.

FAISS indexes can be searched by many threads at once, but not while one of them changes them. `WriterLock` is an
advisory file lock, which the kernel releases when the process ends in any way. The functions at the end handle locks in
forks.
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

_POLL = 0.05  # seconds between attempts, because flock has no timeout


class ReadWriteLock:
    """Many readers or one writer. A waiting writer has priority over new readers. Not re-entrant.

    Python may raise KeyboardInterrupt after any call and at the start of any function: also between a lock's `acquire`
    and the following `try`, or at the beginning of an `__exit__`. It cannot do so while a lock that is implemented in C
    enters or exits a `with`. Therefore `reading` and `writing` release their locks by such a lock's own `__exit__`.
    """

    def __init__(self) -> None:
        self._gate = threading.RLock()  # locked by a writer for the whole time, by a reader while it enters
        self._readers: list[threading.Lock] = []  # one per reader, locked until it has finished

    def reading(self) -> _Reading:
        """Lock together with other readers."""
        return _Reading(self)

    def writing(self) -> _Writing:
        """Lock exclusively."""
        return _Writing(self)


class _Reading:
    __slots__ = ("__exit__", "_lock", "_mine")

    def __init__(self, lock: ReadWriteLock) -> None:
        self._lock = lock
        self._mine = threading.Lock()
        self.__exit__ = self._mine.__exit__

    def __enter__(self) -> None:
        self._mine.acquire()  # never blocks: the lock is new
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
                with reader:  # waits until the reader has finished
                    pass
        except BaseException:
            try:  # noqa: SIM105 - contextlib.suppress is written in Python, so an interrupt could prevent the release
                self._lock._gate.release()
            except RuntimeError:  # another thread has it, and we were waiting
                pass
            raise


class WriterLock:
    """An exclusive lock for writing to a store, from construction until `release()` or the end of the process.

    Args:
        file: the lock file in the store's folder.
        timeout: seconds to wait while another writer has the lock. The order of waiting writers is random.

    Raises:
        StoreLockedError: another writer, in this process or another, has not released it within `timeout`.
    """

    def __init__(self, file: Path, timeout: float = 0.0) -> None:
        self._fcntl = _file_locks()
        self._owner = os.getpid()
        self._file = open(file, "a", encoding="utf-8")  # noqa: SIM115 - stays open: closing releases the lock
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
        """Release the lock, even if a forked child has the file open too."""
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
    """Refuse to write to something that another process has open.

    Raises:
        StoreLockedError: this process is a fork of that one.
    """
    if os.getpid() != owner:
        raise StoreLockedError(
            f"{folder} was opened for writing by the process {owner}, of which {os.getpid()} is a fork; write "
            "there, or close it there and open it here"
        )


_made: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary()  # object -> name of its method


def made_anew_in_forks(make: Callable[[], None]) -> None:
    """Call a method that creates its object's locks, now and in every forked child.

    If another thread has a lock during a fork, the child inherits it locked, but not the thread that would release it.
    """
    make()
    _made[make.__self__] = make.__name__  # type: ignore[attr-defined]


def held_in_forks(lock: threading.RLock) -> threading.RLock:
    """Register a lock that is acquired during forks, so that no thread is inside the code it protects.

    For libraries with locks of their own, which a child would otherwise inherit locked.
    """
    with _no_fork:
        _held.add(lock)
    return lock


_no_fork = threading.RLock()
_held: weakref.WeakSet[threading.RLock] = weakref.WeakSet()
_taken: list[threading.RLock] = []  # by the fork in progress


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
