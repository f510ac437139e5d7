"""Work beside the decoding loop: it has a thread of its own, and the two threads take turns.

    loop    step │              step │              step step step ...
    aside        │ prefill, part 1   │ part 2, done

Only one of them uses the model at any time. Hooks act in the thread that registered them, so work can be interrupted
inside `applied` or `watch` without an effect on the rows that are decoded meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from memograft.errors import RequestCancelledError

__all__ = ["Aside"]

T = TypeVar("T")


class Aside(Generic[T]):
    """Runs a function in turns with its owner's thread.

    Args:
        work: the function. It is given `pause`, which it should call between pieces of its work.
    """

    def __init__(self, work: Callable[[Callable[[], None]], T]) -> None:
        self._work, self._until, self._closed, self.done = work, 0.0, False, False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._result: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="memograft aside", daemon=True)
        self._thread.start()

    def resume(self, seconds: float) -> bool:
        """Let it work until the first `pause` after some seconds. Returns whether it is done."""
        self._until = time.monotonic() + seconds
        self._go.release()
        self._back.acquire()
        return self.done

    @property
    def result(self) -> T:
        """What the function returned, once it is done.

        Raises:
            BaseException: what it raised.
        """
        assert self.done
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def close(self) -> None:
        """End it at its next `pause`."""
        self._closed = True
        while not self.done:
            self.resume(0.0)
        self._thread.join()

    def _pause(self) -> None:
        if not self._closed and time.monotonic() < self._until:
            return
        if not self._closed:
            self._back.release()
            self._go.acquire()
        if self._closed:
            raise RequestCancelledError("the engine ended while this request was prepared")

    def _run(self) -> None:
        self._go.acquire()
        try:
            self._result = self._work(self._pause)
        except BaseException as error:
            self._error = error
        finally:
            self.done = True
            self._back.release()
