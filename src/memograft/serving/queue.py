"""The thread that uses the model, and the queue of jobs from many threads and tasks.

Jobs begin in the order in which they came. All that wait when the thread becomes free begin together, including those
that arrive within a short time. Later ones begin while these run, as soon as there is room.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from memograft.errors import EngineClosedError, RequestCancelledError, RequestTimeoutError

if TYPE_CHECKING:
    from memograft.memory.base import Task

__all__ = ["Job", "Load", "Worker"]

_GATHER = 0.002  # seconds to wait for further jobs: the threads of one `.batch()` submit at slightly different times


class Job:
    """Work for the model's thread: a function (`call`), or a request (`payload`).

    Attributes:
        payload: a request's work.
        call: a function that uses the model alone. It receives a Task, whose `given_up` it should call between parts of
            its work.
        on_text: called with pieces of text as they are generated.
        deadline: `time.monotonic()` at which the job is cancelled; None: never.
        future: its result. The first of result, cancellation and timeout counts, and waiters are notified at once.
    """

    def __init__(
        self,
        payload: Any = None,
        *,
        call: Callable[[Task], Any] | None = None,
        on_text: Callable[[str], None] | None = None,
        timeout: float | None = None,
    ) -> None:
        self.payload, self.call, self.on_text = payload, call, on_text
        if timeout is not None and timeout > threading.TIMEOUT_MAX / 2:  # larger than a lock's timeout may be
            timeout = None
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.future: Future[Any] = Future()
        self._emitted = ""

    @property
    def done(self) -> bool:
        """Whether it has a result, an error, or was cancelled."""
        return self.future.done()

    def seconds_left(self) -> float | None:
        """Seconds until the deadline; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def given_up(self) -> bool:
        """Whether work on it should stop, because it was cancelled or its time is up."""
        if self.seconds_left() == 0.0:
            self.expire()
        return self.done

    def cancel(self) -> None:
        """Cancel the job. Waiters are notified at once; a running job stops at its next token or step."""
        self.fail(RequestCancelledError("the request was cancelled before it was answered"))

    def expire(self) -> None:
        """Cancel the job because its time is up."""
        self.fail(RequestTimeoutError("the request's `timeout` passed; allow more time or fewer `max_new_tokens`"))

    def emit(self, text: str) -> None:
        """Pass on the part of `text`, the answer so far, that was not passed on yet.

        Raises:
            RuntimeError: `text` does not begin with what was passed on.
        """
        if self.on_text is None or self._emitted.startswith(text):
            return
        if not text.startswith(self._emitted):
            raise RuntimeError(
                f"the streamed text changed from {self._emitted[-40:]!r} to {text[-40:]!r} (the tokenizer rewrites "
                "what it decoded, or the batch was started again and came out otherwise); use `answer`, not `stream`"
            )
        piece, self._emitted = text[len(self._emitted) :], text
        self.on_text(piece)

    def succeed(self, result: Any) -> None:
        """Set the result, unless the job was cancelled."""
        with suppress(InvalidStateError):
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Set an error, unless the job already has a result or error."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class Load(NamedTuple):
    """How busy an engine is: numbers of requests that run (are prepared or decoded), and that wait to begin."""

    running: int
    waiting: int


class Worker:
    """Runs jobs in a thread that the first job starts.

    Args:
        run: runs jobs, and further ones that it gets from its second argument, which is given how many may begin.
        max_batch: maximum number of jobs that run together.
        in_fork: called before the first job in a forked process; `submit` raises its exceptions.
    """

    def __init__(
        self,
        run: Callable[[list[Job], Callable[[int], list[Job]]], None],
        max_batch: int,
        in_fork: Callable[[], None] = lambda: None,
    ) -> None:
        self._run = weakref.WeakMethod(run)  # the thread must not keep the engine alive
        self._max_batch, self._in_fork = max_batch, in_fork
        self._closed = self._forked = False
        self._begin()
        _workers.add(self)

    def _begin(self) -> None:
        self._queue: queue.SimpleQueue[Sequence[Job] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pending: list[Job] = []  # taken from the queue; only the thread uses it
        self._running: list[Job] = []
        self._submitted = self._begun = 0  # counts of jobs; the second is the thread's

    def begin_anew(self) -> None:
        """Reset a forked child: thread and waiting jobs belong to the parent, and the lock may be locked for ever."""
        self._forked = True
        self._begin()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs; those of one call are queued together.

        Raises:
            EngineClosedError: after `close`.
        """
        with self._lock:
            if self._closed:
                raise EngineClosedError("the engine is closed and takes no requests; make a new one")
            if self._forked and self._thread is None:
                self._in_fork()
            self._queue.put(jobs)
            self._submitted += len(jobs)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="memograft", daemon=True)
                self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether `close` or `abandon` was called."""
        return self._closed

    @property
    def load(self) -> Load:
        """How many jobs run and wait; a job that was cancelled counts until the thread drops it."""
        return Load(sum(not job.done for job in self._running), max(self._submitted - self._begun, 0))

    def close(self) -> None:
        """Finish what runs, fail the waiting jobs, and end the thread."""
        thread = self._end()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def abandon(self) -> None:
        """Cancel what runs, then `close`. For unreferenced engines and for the interpreter's exit."""
        for job in self._running:
            job.cancel()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self.close()
        else:  # garbage collection may run inside an event loop, which must not be blocked
            self._end()

    def _end(self) -> threading.Thread | None:
        """Refuse further jobs and let the thread end; returns the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
            return self._thread

    def _loop(self) -> None:
        while self._wait():
            self._serve()
        for job in self._pending:
            job.fail(EngineClosedError("the engine was closed before this request was answered"))
        self._begun = self._submitted

    def _wait(self) -> bool:
        """Wait for the first job, and shortly for those that come with it; False if the worker was closed."""
        while len(self._pending) < self._max_batch or not self._queue.empty():
            try:
                jobs = self._queue.get(timeout=_GATHER if self._pending else None)
            except queue.Empty:
                return True
            if jobs is None:
                return False
            self._pending.extend(jobs)
        return True

    def _serve(self) -> None:
        """Run the waiting jobs, and those that arrive while they run."""
        self._running = []
        try:
            if (jobs := self._next(self._max_batch)) and (run := self._run()) is not None:
                run(jobs, self._more)
        except BaseException as e:  # errors must not end the thread
            for job in self._running:
                job.fail(e)
        finally:
            ended, self._running = self._running, []
        for job in ended:
            job.fail(EngineClosedError("the engine ended before this request was answered; hold on to it meanwhile"))

    def _more(self, room: int) -> list[Job]:
        """The next jobs, without waiting; none once the worker is closed."""
        with suppress(queue.Empty):
            while not self._closed:
                if (jobs := self._queue.get_nowait()) is None:
                    self._queue.put(None)  # for `_wait`
                    break
                self._pending.extend(jobs)
        return [] if self._closed else self._next(room)

    def _next(self, room: int) -> list[Job]:
        """Take up to `room` jobs of a batch, or one that runs alone, from the front of those that wait."""
        count = len(self._pending)
        self._pending = [job for job in self._pending if not job.given_up()]
        self._begun += count - len(self._pending)
        calls = (n for n, job in enumerate(self._pending) if job.call is not None)
        alone = next(calls, len(self._pending))
        count = min(alone, room) if alone else min(1, len(self._pending))
        taken, self._pending = self._pending[:count], self._pending[count:]
        self._begun += count
        self._running = [*(job for job in self._running if not job.done), *taken]
        return taken


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


def _after_fork() -> None:
    for worker in list(_workers):
        worker.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
