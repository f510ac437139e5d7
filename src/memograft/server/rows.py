"""The answers of one HTTP request: admitted, awaited whole or piece by piece, and cancelled if the client has gone."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from typing import TypeVar

from starlette.requests import Request as HttpRequest

from memograft.engine import Engine
from memograft.request import Answer, Request
from memograft.server.errors import ApiError
from memograft.server.settings import ServerSettings
from memograft.serving.stream import AsyncStream

__all__ = ["Admission", "ClientGone", "Pieces", "Ticket", "answers_of"]

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed its connection before it was answered."""


class Ticket:
    """The right to have some answers in progress, until `release`."""

    def __init__(self, admission: Admission, key: str, count: int) -> None:
        self._admission, self._key, self._count = admission, key, count

    def release(self) -> None:
        """Give it back; a second call does nothing."""
        self._admission.give_back(self._key, self._count)
        self._count = 0


class Admission:
    """Limits how many answers are in progress: those that the engine decodes together, and a queue.

    It is used by one event loop.

    Args:
        engine: the engine.
        settings: the limits.
    """

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        self._room = engine.max_batch + settings.max_queue
        self._batch = engine.max_batch
        self._per_key = settings.max_per_key
        self._count: Counter[str] = Counter()

    def enter(self, key: str, count: int) -> Ticket:
        """Admit `count` answers for a key.

        Raises:
            ApiError: 400 if so many are never admitted, and 429 if they are not now.
        """
        most, total = min(self._room, self._per_key or self._room), self._count.total()
        if count > most:
            raise ApiError(400, f"a request may have {most} answers in all, got {count}; ask for fewer", param="n")
        if self._per_key is not None and self._count[key] + count > self._per_key:
            raise self._busy(f"the key has {self._count[key]} answers in progress, and may have {self._per_key}", total)
        if total + count > self._room:
            raise self._busy(f"{total} answers are in progress, and the queue ends at {self._room}", total)
        self._count[key] += count
        return Ticket(self, key, count)

    def give_back(self, key: str, count: int) -> None:
        """End some answers."""
        self._count[key] -= count
        if not self._count[key]:
            del self._count[key]

    def _busy(self, said: str, total: int) -> ApiError:
        seconds = max(1, math.ceil(total / self._batch))  # a round of the engine for each batch before it
        return ApiError(
            429,
            f"{said}; send the request again in {seconds} s",
            type="rate_limit_error",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(seconds)},
        )


async def answers_of(engine: Engine, requests: Sequence[Request], http: HttpRequest) -> list[Answer]:
    """Answer requests together.

    Raises:
        ClientGone: the client has gone; the requests were cancelled.
        Exception: the first error of a request; the others were cancelled.
    """
    work = asyncio.ensure_future(_together([engine.aanswer(request) for request in requests]))
    gone = asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGone
        return work.result()
    finally:
        await _ended(work, gone)


class Pieces(AsyncIterator[tuple[int, str | Answer]]):
    """Pieces of several answers as they come, each with the number of its answer; then the whole answer.

    Iterating raises `ClientGone`, or the first error of an answer.

    Args:
        engine: the engine.
        requests: one for each answer.
        http: the client's request.
        ticket: released when all answers have ended, or by `aclose`.
    """

    def __init__(self, engine: Engine, requests: Sequence[Request], http: HttpRequest, ticket: Ticket) -> None:
        self._queue: asyncio.Queue[tuple[int, str | Answer | Exception]] = asyncio.Queue()
        self._left = self._running = len(requests)
        self._ticket = ticket
        self._first: tuple[int, str | Answer] | None = None
        streams = [engine.astream(request) for request in requests]
        self._tasks = [asyncio.ensure_future(self._read(n, stream)) for n, stream in enumerate(streams)]
        self._tasks.append(asyncio.ensure_future(self._watch(http)))

    async def begun(self) -> None:
        """Wait for the first piece, which iterating then gives.

        Raises:
            ClientGone, Exception: there is none.
        """
        self._first = await self.__anext__()

    async def __anext__(self) -> tuple[int, str | Answer]:
        """The next piece or answer."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if not self._left:
            await self.aclose()
            raise StopAsyncIteration
        number, item = await self._queue.get()
        if isinstance(item, Exception):
            await self.aclose()
            raise item
        self._left -= isinstance(item, Answer)
        return number, item

    async def aclose(self) -> None:
        """Cancel the answers that have not ended."""
        self._left = 0
        await _ended(*self._tasks)
        self._ticket.release()

    async def _read(self, number: int, stream: AsyncStream) -> None:
        try:
            async with stream:
                async for piece in stream:
                    self._queue.put_nowait((number, piece))
            assert stream.answer is not None
            self._queue.put_nowait((number, stream.answer))
        except Exception as error:
            self._queue.put_nowait((number, error))
        finally:
            self._running -= 1
            if not self._running:  # now, not when the client has read it all
                self._ticket.release()

    async def _watch(self, http: HttpRequest) -> None:
        await _disconnected(http)
        self._queue.put_nowait((0, ClientGone()))


async def _together(calls: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """The results of all calls; the first error cancels the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _disconnected(http: HttpRequest) -> None:
    """Wait until the client closes the connection."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _ended(*tasks: asyncio.Future[T] | asyncio.Future[None]) -> None:
    """Cancel tasks, and wait for their ends."""
    for task in tasks:
        task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)
