"""The one thread that touches the model, and the queue where requests of many threads and tasks meet.

Whatever waits when the thread gets free becomes one batch; so do callers that come at about the same time. Knows
nothing of what a job does.
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
from typing import Any

from memograft.errors import EngineClosedError, RequestCancelledError, RequestTimeoutError

__all__ = ["Job", "Worker"]

_GATHER = 0.002  # seconds to wait for one more caller: threads of one `.batch()` do not come at the same instant


class Job:
    """Something to be done on the model's thread, by itself (`call`) or in a batch with others of its kind.

    Attributes:
        payload: what a batch job works on.
        call: what a job by itself does; it is handed `given_up`.
        on_text: receives pieces of text as they come.
        deadline: `time.monotonic()` after which the job is given up; None never.
        future: its result. Whoever settles it first wins, and its waiters learn at once.
    """

    def __init__(
        self,
        payload: Any = None,
        *,
        call: Callable[[Callable[[], bool]], Any] | None = None,
        on_text: Callable[[str], None] | None = None,
        timeout: float | None = None,
    ) -> None:
        self.payload, self.call, self.on_text = payload, call, on_text
        if timeout is not None and timeout > threading.TIMEOUT_MAX / 2:  # centuries, which no lock can wait for
            timeout = None
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.future: Future[Any] = Future()
        self._emitted = ""

    @property
    def done(self) -> bool:
        """Whether there is a result, or nobody wants one any more."""
        return self.future.done()

    def seconds_left(self) -> float | None:
        """Until the deadline; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def given_up(self) -> bool:
        """Whether work on it should end: it was cancelled, or its time is up."""
        if self.seconds_left() == 0.0:
            self.expire()
        return self.done

    def cancel(self) -> None:
        """Give the job up: its waiters learn at once, a running one ends at its next token or step."""
        self.fail(RequestCancelledError("the request was cancelled before it was answered"))

    def expire(self) -> None:
        """Give the job up because its time is up."""
        self.fail(RequestTimeoutError("the request's `timeout` passed; allow more time or fewer `max_new_tokens`"))

    def emit(self, text: str) -> None:
        """Pass on what of `text`, the whole answer so far, was not passed on yet.

        Raises:
            RuntimeError: `text` takes back something that was passed on.
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
        """Settle the job, unless it was given up meanwhile."""
        with suppress(InvalidStateError):
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Settle the job with an error, unless it is settled."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class Worker:
    """Runs jobs one batch after the other in a thread of its own, started with the first job.

    Args:
        run: works on a batch.
        max_batch: jobs in one at most.
        in_fork: called before the first job in a process that was forked from its own; what it raises, `submit` does.
    """

    def __init__(
        self, run: Callable[[list[Job]], None], max_batch: int, in_fork: Callable[[], None] = lambda: None
    ) -> None:
        self._run = weakref.WeakMethod(run)  # the thread must not keep an engine alive that nobody else holds
        self._max_batch, self._in_fork = max_batch, in_fork
        self._closed = self._forked = False
        self._begin()
        _workers.add(self)

    def _begin(self) -> None:
        self._queue: queue.SimpleQueue[Sequence[Job] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._running: Sequence[Job] = ()

    def begin_anew(self) -> None:
        """In a forked child: its thread, and whoever waited for it, are the parent's; a lock may be held for ever."""
        self._forked = True
        self._begin()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs; those of one call enter together.

        Raises:
            EngineClosedError: after `close`.
        """
        with self._lock:
            if self._closed:
                raise EngineClosedError("the engine is closed and takes no requests; make a new one")
            if self._forked and self._thread is None:
                self._in_fork()
            self._queue.put(jobs)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="memograft", daemon=True)
                self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether it takes no jobs any more."""
        return self._closed

    def close(self) -> None:
        """Finish what runs, fail what waits, end the thread."""
        thread = self._end()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def abandon(self) -> None:
        """Give up what runs, then `close`: for an engine that nobody holds, and at the interpreter's exit."""
        for job in self._running:
            job.cancel()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self.close()
        else:  # garbage may be collected inside an event loop, which must not wait for the thread
            self._end()

    def _end(self) -> threading.Thread | None:
        """Take no more jobs, and let the thread end; returns it."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
            return self._thread

    def _loop(self) -> None:
        pending: list[Job] = []
        while self._wait(pending):
            self._step(pending)
        for job in pending:
            job.fail(EngineClosedError("the engine was closed before this request was answered"))

    def _wait(self, pending: list[Job]) -> bool:
        """Fetch all that is queued, waiting for the first; False if the worker is to end."""
        while len(pending) < self._max_batch or not self._queue.empty():
            try:
                jobs = self._queue.get(timeout=_GATHER if pending else None)
            except queue.Empty:
                return True
            if jobs is None:
                return False
            pending.extend(jobs)
        return True

    def _step(self, pending: list[Job]) -> None:
        """Do the job at the head of the queue, and with it what can share its batch."""
        count = 1
        if pending[0].call is None:
            calls = (n for n, job in enumerate(pending) if job.call is not None)
            count = min(next(calls, len(pending)), self._max_batch)
        batch = [job for job in pending[:count] if not job.given_up()]
        del pending[:count]
        if not batch:
            return
        self._running = batch
        try:
            if batch[0].call is not None:
                batch[0].succeed(batch[0].call(batch[0].given_up))
            elif (run := self._run()) is not None:
                run(batch)
        except BaseException as e:  # the thread lives on, whatever a processor raises
            for job in batch:
                job.fail(e)
        finally:
            self._running = ()
        for job in batch:
            job.fail(EngineClosedError("the engine ended before this request was answered; hold on to it meanwhile"))


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


def _after_fork() -> None:
    for worker in list(_workers):
        worker.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
