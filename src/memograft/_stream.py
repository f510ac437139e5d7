"""Waiting for a job, in a thread or in a task, whole or piece by piece. Knows nothing of models."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from memograft._queue import Job
from memograft.request import Answer

__all__ = ["AsyncStream", "Stream", "TextSoFar", "wait"]

Submit = Callable[[Callable[[str], None]], Job]


def wait(job: Job, others: Sequence[Job] = ()) -> Any:
    """The job's result; interrupted (Ctrl-C), it gives the job and the others up."""
    try:
        return job.future.result()
    except Exception:
        raise
    except BaseException:
        for each in (job, *others):
            each.cancel()
        raise


class TextSoFar:
    """Tokens so far -> text that is sure to stay: without half characters and without the beginning of a stop string."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> None:
        self._decode, self._stop = decode, stop

    def __call__(self, tokens: Sequence[int]) -> str:
        text = self._decode(tokens).rstrip("\ufffd")
        for stop in self._stop:
            if stop in text:
                text = text[: text.index(stop)]
            for length in range(min(len(stop) - 1, len(text)), 0, -1):
                if text.endswith(stop[:length]):
                    text = text[:-length]
                    break
        return text

    def final(self, tokens: Sequence[int]) -> str:
        """The whole answer's text, up to the first stop string."""
        text = self._decode(tokens)
        return text[: min((text.index(s) for s in self._stop if s in text), default=len(text))]


class Stream(Iterator[str]):
    """Pieces of one answer; afterwards `answer` holds the whole. The request starts with the first piece asked for."""

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._job: Job | None = None
        self.answer: Answer | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        if self.answer is not None:
            raise StopIteration
        if self._job is None:
            self._job = self._submit(self._pieces.put)
            self._job.future.add_done_callback(lambda _: self._pieces.put(None))
        try:
            piece = self._pieces.get()
        except BaseException:  # Ctrl-C
            self.close()
            raise
        if piece is not None:
            return piece
        self.answer = self._job.future.result()
        raise StopIteration

    def close(self) -> None:
        """Give the request up."""
        if self._job is not None:
            self._job.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class AsyncStream:
    """`Stream` for a task; cancelling the task gives the request up."""

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self._job: Job | None = None
        self.answer: Answer | None = None

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> str:
        if self.answer is not None:
            raise StopAsyncIteration
        self._start()
        assert self._job is not None
        try:
            piece = await self._pieces.get()
        except BaseException:
            self._job.cancel()
            raise
        if piece is not None:
            return piece
        self.answer = self._job.future.result()
        raise StopAsyncIteration

    async def result(self) -> Answer:
        """Wait for the whole answer."""
        async for _ in self:
            pass
        assert self.answer is not None
        return self.answer

    async def aclose(self) -> None:
        """Give the request up."""
        if self._job is not None:
            self._job.cancel()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _start(self) -> None:
        if self._job is not None:
            return
        loop = asyncio.get_running_loop()

        def put(piece: str | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

        self._job = self._submit(put)
        self._job.future.add_done_callback(lambda _: put(None))
