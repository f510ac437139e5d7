"""The one thread that touches the model, and the queue where requests of many threads and tasks meet.

Whatever waits when the thread gets free becomes one batch. Knows nothing of what a job does.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from memograft.errors import EngineClosedError, RequestCancelledError

__all__ = ["Job", "Worker"]


class Job:
    """Something to be done on the model's thread, by itself (`call`) or in a batch with others of its kind.

    Attributes:
        payload: what a batch job works on.
        future: its result; at most one of result and exception is set, by the worker.
        on_text: receives pieces of text as they come.
    """

    def __init__(
        self,
        payload: Any = None,
        call: Callable[[Callable[[], bool]], Any] | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        self.payload, self.call, self.on_text = payload, call, on_text
        self.future: Future[Any] = Future()
        self._cancelled = threading.Event()
        self._emitted = 0

    def cancel(self) -> None:
        """Give the job up: a waiting one never starts, a running one ends at its next token or step."""
        self._cancelled.set()
        if self.future.cancel():
            return

    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def emit(self, text: str) -> None:
        """Pass on what of `text`, the whole answer so far, was not passed on yet."""
        if self.on_text is not None and len(text) > self._emitted:
            piece, self._emitted = text[self._emitted :], len(text)
            self.on_text(piece)

    def succeed(self, result: Any) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Worker:
    """Runs jobs one batch after the other in a thread of its own, started with the first job."""

    def __init__(self, run: Callable[[list[Job]], None], max_batch: int) -> None:
        # The thread must not keep an engine alive that nobody else holds.
        self._run = weakref.WeakMethod(run) if hasattr(run, "__self__") else (lambda: run)
        self._max_batch = max_batch
        self._queue: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs; those of one call enter together.

        Raises:
            EngineClosedError: after `close`.
        """
        with self._lock:
            if self._closed:
                raise EngineClosedError("the engine is closed and takes no requests; make a new one")
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="memograft", daemon=True)
                self._thread.start()
            self._queue.put(list(jobs))

    def close(self) -> None:
        """Finish what runs, fail what waits, end the thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _loop(self) -> None:
        pending: list[Job] = []
        closing = False
        while not closing or pending:
            if not pending and not closing:
                closing = self._take(self._queue.get(), pending)
            while not self._queue.empty():
                closing = self._take(self._queue.get(), pending) or closing
            if closing:
                for job in pending:
                    job.fail(EngineClosedError("the engine was closed before this request was answered"))
                return
            self._step(pending)

    def _take(self, jobs: list[Job] | None, pending: list[Job]) -> bool:
        pending.extend(jobs or ())
        return jobs is None

    def _step(self, pending: list[Job]) -> None:
        """Do the job at the head of the queue, and with it what can share its batch."""
        count = 1
        if pending[0].call is None:
            calls = (n for n, job in enumerate(pending) if job.call is not None)
            count = min(next(calls, len(pending)), self._max_batch)
        batch = [job for job in pending[:count] if job.future.set_running_or_notify_cancel()]
        del pending[:count]
        if not batch:
            return
        try:
            if batch[0].call is not None:
                batch[0].succeed(batch[0].call(batch[0].cancelled))
            elif (run := self._run()) is None:
                raise EngineClosedError("the engine is gone; keep a reference to it while requests run")
            else:
                run(batch)
        except BaseException as e:
            for job in batch:
                job.fail(e)
        finally:
            for job in batch:
                job.fail(RequestCancelledError("the request was cancelled") if job.cancelled() else _lost())


def _lost() -> RuntimeError:
    return RuntimeError("the engine ended this request without an answer; please report this")
