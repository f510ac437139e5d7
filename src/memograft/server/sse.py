"""Server-sent events: the form of OpenAI's streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.requests import Request as HttpRequest
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from memograft.server.errors import api_error, to_json
from memograft.server.journal import facts_of
from memograft.server.rows import ClientGone

__all__ = ["EventStream", "events"]

_DONE = b"data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """A stream of events that always ends what it comes from, also if the client goes before the first event.

    Args:
        content: the events.
        close: called when the response has ended in any way.
    """

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[bytes], close: Callable[[], Awaitable[None]]) -> None:
        super().__init__(content, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._close = close

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await self.stream_response(send)
        finally:
            await self._close()


async def events(
    chunks: AsyncIterator[dict[str, object]], http: HttpRequest, *, named: bool = False
) -> AsyncIterator[bytes]:
    """Chunks as events, and the end mark. An error in the middle is an event too, and the stream ends properly.

    Args:
        chunks: the chunks.
        http: the client's request.
        named: whether events have the names in `type` and numbers, and no end mark, as those of /v1/responses.
    """
    count = 0
    try:
        async for chunk in chunks:
            if named:
                yield _named(chunk, count)
            else:
                yield b"data: " + to_json(chunk) + b"\n\n"
            count += 1
    except ClientGone:
        facts_of(http.scope).error = "client_gone"
        return
    except Exception as error:
        told = api_error(error)
        facts_of(http.scope).error = told.code or told.type
        if named:
            yield _named({"type": "error", "code": told.code, "message": told.message, "param": told.param}, count)
        else:
            yield b"data: " + to_json(told.body()) + b"\n\n"
    if not named:
        yield _DONE


def _named(chunk: dict[str, object], number: int) -> bytes:
    return f"event: {chunk['type']}\ndata: ".encode() + to_json({**chunk, "sequence_number": number}) + b"\n\n"
