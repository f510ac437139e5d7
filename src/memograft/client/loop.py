"""`Loop`: an event loop in a thread of its own, so that threads and tasks of any other loop can share connections."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

__all__ = ["Loop"]

T = TypeVar("T")


class Loop:
    """Runs coroutines in a thread, from the first one until `end`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="memograft client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[None, None, T]) -> Future[T]:
        """Begin a coroutine. Cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def end(self, last: Callable[[], Awaitable[None]]) -> None:
        """Cancel what runs, await `last`, and end the thread; does not wait for that."""

        async def ended() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            with suppress(Exception):  # a connection that is broken already
                await last()
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(ended(), self._loop)

    def join(self) -> None:
        """Wait for the thread's end."""
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()
