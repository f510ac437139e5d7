"""Wait for jobs in a thread or a task, for the whole answer or piece by piece."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from memograft.errors import RequestCancelledError
from memograft.request import Answer
from memograft.serving.queue import Job

__all__ = ["AsyncStream", "Stream", "TextSoFar", "wait"]

Submit = Callable[[Callable[[str], None]], Job]

_HALF = "\ufffd"  # replacement character: decoded from an incomplete UTF-8 sequence


def wait(jobs: Sequence[Job]) -> list[Any]:
    """Return each job's result or raise its exception; on an interrupt (Ctrl-C) cancel all jobs."""
    try:
        return [_result(job) for job in jobs]
    except BaseException:
        for job in jobs:
            job.cancel()
        raise


def _result(job: Job) -> Any:
    try:
        error = job.future.exception(job.seconds_left())
    except TimeoutError:
        job.expire()
        error = job.future.exception()
    return job.future.result() if error is None else error


class TextSoFar:
    """Decodes the tokens so far to text that is final: no incomplete character, no start of a stop string."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> None:
        self._decode, self._stop = decode, stop

    def __call__(self, tokens: Sequence[int]) -> str:
        """The text so far, without an end that later tokens could change."""
        text = self.final(tokens).rstrip(_HALF)
        keep = len(text)
        for stop in self._stop:
            starts = (len(text) - n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n]))
            keep = min(keep, next(starts, keep))
        return text[:keep].rstrip(_HALF)

    def final(self, tokens: Sequence[int]) -> str:
        """The text of the finished answer, up to the first stop string."""
        text = self._decode(tokens)
        return text[: min((text.index(s) for s in self._stop if s in text), default=len(text))]


class Stream(Iterator[str]):
    """Iterates over the pieces of one answer; afterwards `answer` is the whole. The first `next` starts the request."""

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._job: Job | None = None
        self._over = False
        self.answer: Answer | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        if self._over:
            raise StopIteration
        try:
            piece = self._next()
        except BaseException:  # Ctrl-C, or a refused request
            self.close()
            raise
        if piece is not None:
            return piece
        self._over = True
        assert self._job is not None
        self.answer = self._job.future.result()
        raise StopIteration

    def _next(self) -> str | None:
        if self._job is None:
            pieces = self._pieces  # callbacks must not keep the stream alive
            self._job = self._submit(pieces.put)
            self._job.future.add_done_callback(lambda _: pieces.put(None))
        try:
            return self._pieces.get(timeout=self._job.seconds_left())
        except queue.Empty:
            self._job.expire()
            return self._pieces.get()

    def close(self) -> None:
        """Cancel the request; a thread that waits for a piece gets a RequestCancelledError."""
        if self._job is None:
            self._over = True
        else:
            self._job.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class AsyncStream:
    """`Stream` for asyncio. Cancelling the task cancels the request."""

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self._job: Job | None = None
        self._over = False
        self.answer: Answer | None = None

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> str:
        if self._over:
            raise StopAsyncIteration
        try:
            piece = await self._next()
        except BaseException:
            await self.aclose()
            raise
        if piece is not None:
            return piece
        self._over = True
        assert self._job is not None
        self.answer = self._job.future.result()
        raise StopAsyncIteration

    async def _next(self) -> str | None:
        if self._job is None:
            loop, pieces = asyncio.get_running_loop(), self._pieces

            def put(piece: str | None) -> None:
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(pieces.put_nowait, piece)

            self._job = self._submit(put)
            self._job.future.add_done_callback(lambda _: put(None))
        try:
            return await asyncio.wait_for(self._pieces.get(), self._job.seconds_left())
        except TimeoutError:
            self._job.expire()
            return await self._pieces.get()

    async def result(self) -> Answer:
        """Wait for the whole answer."""
        async for _ in self:
            pass
        if self.answer is None:
            raise RequestCancelledError("the stream was closed or has failed before; make a new one")
        return self.answer

    async def aclose(self) -> None:
        """Cancel the request."""
        if self._job is None:
            self._over = True
        else:
            self._job.cancel()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._job is not None:
            self._job.cancel()
