"""Answers of the engine -> responses and events of /v1/responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from memograft.chat import Reading, logprobs_of
from memograft.request import Answer
from memograft.server.journal import Facts
from memograft.server.replies import ChatReply, Json, usage_for
from memograft.server.response_request import ResponseRequest
from memograft.server.rows import Pieces

__all__ = ["ResponseReply"]


@dataclass(frozen=True, kw_only=True)
class ResponseReply(ChatReply):
    """Responses of /v1/responses.

    The output is a message, unless there are only calls; then what the model wrote before it, if its tokenizer tells
    the two apart; then calls. A stream has them in the same order.

    Attributes:
        body: what was asked for; responses repeat it.
    """

    body: ResponseRequest

    def whole(self, answers: Sequence[Answer]) -> Json:
        """The response."""
        (answer,) = answers
        return self._ended(answer, self._items(answer, self._read(answer)))

    async def chunks(self, pieces: Pieces, facts: Facts) -> AsyncIterator[Json]:
        """The events of a stream, whose numbers are added later."""
        for begun in ("created", "in_progress"):
            yield {"type": f"response.{begun}", "response": self._response("in_progress", [])}
        said = shown = ""
        async for _, piece in pieces:
            facts.piece()
            if isinstance(piece, str):
                said += piece
                if new := self.asked.plan.shown(said)[len(shown) :]:
                    for event in () if shown else self._opened():
                        yield event
                    shown += new
                    yield self._part("output_text.delta", delta=new, logprobs=[])
                continue
            facts.answered([piece])
            reading = self._read(piece)
            items = self._items(piece, reading)
            for index, item in enumerate(items):
                for event in self._told(index, item, shown, reading):
                    yield event
            ended = await asyncio.to_thread(self._ended, piece, items)  # citations take time
            yield {"type": f"response.{ended['status']}", "response": ended}

    def _told(self, index: int, item: Json, shown: str, reading: Reading) -> Iterator[Json]:
        """The events of an item, without those that were sent while its text came."""
        where: Json = {"item_id": item["id"], "output_index": index}
        if item["type"] == "message":
            if not shown:
                yield from self._opened()
            if rest := reading.rest(shown):
                yield self._part("output_text.delta", delta=rest, logprobs=[])
            (content,) = cast(list[Json], item["content"])
            yield self._part("output_text.done", text=content["text"], logprobs=content["logprobs"])
            yield self._part("content_part.done", part=content)
        elif item["type"] == "function_call":
            begun = {**item, "arguments": "", "status": "in_progress"}
            yield {"type": "response.output_item.added", "output_index": index, "item": begun}
            arguments = item["arguments"]
            yield {"type": "response.function_call_arguments.delta", **where, "delta": arguments}
            said = {"name": item["name"], "arguments": arguments}
            yield {"type": "response.function_call_arguments.done", **where, **said}
        else:
            yield {"type": "response.output_item.added", "output_index": index, "item": item}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}

    def _opened(self) -> Iterator[Json]:
        """The events before the first piece of text."""
        item = {**self._message("in_progress"), "content": []}
        yield {"type": "response.output_item.added", "output_index": 0, "item": item}
        yield self._part("content_part.added", part=_text("", None))

    def _part(self, event: str, **values: object) -> Json:
        """An event about the message's text."""
        where = {"item_id": f"msg_{self.id}", "output_index": 0, "content_index": 0}
        return {"type": f"response.{event}", **where, **values}

    def _message(self, status: str) -> Json:
        return {"id": f"msg_{self.id}", "type": "message", "status": status, "role": "assistant"}

    def _items(self, answer: Answer, reading: Reading) -> list[Json]:
        """The output of a finished answer."""
        items: list[Json] = []
        if reading.content or not reading.calls:
            items.append({**self._message(_status(answer)), "content": [_text(reading.content, answer)]})
        if reading.reasoning:
            said = [{"type": "reasoning_text", "text": reading.reasoning}]
            items.append({"id": f"rs_{self.id}", "type": "reasoning", "summary": [], "content": said})
        for number, call in enumerate(reading.calls):
            function = call.to_openai()["function"]
            assert isinstance(function, dict)
            about = {"id": f"fc_{self.id}_{number}", "type": "function_call", "status": "completed"}
            items.append({**about, "call_id": call.id, **function})
        return items

    def _ended(self, answer: Answer, items: list[Json]) -> Json:
        usage = usage_for(self.asked, [answer])
        counts = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }
        return {**self._response(_status(answer), items), "usage": counts, **self.report(answer)}

    def _response(self, status: str, items: list[Json]) -> Json:
        body, sampling = self.body, self.asked.requests[0].sampling
        return {
            "id": f"resp_{self.id}",
            "object": "response",
            "created_at": self.created,
            "status": status,
            "model": self.model,
            "output": items,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "text": {"format": body.format.model_dump(exclude_none=True, by_alias=True)},
            "tools": [tool.model_dump() for tool in body.tools or ()],
            "tool_choice": body.tool_choice or "auto",
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "truncation": "disabled",
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "background": False,
            "store": False,
            "metadata": {},
            "user": body.user,
            "usage": None,
        }


def _status(answer: Answer) -> str:
    return "incomplete" if answer.finish_reason == "length" else "completed"


def _text(text: str, answer: Answer | None) -> Json:
    found = None if answer is None else logprobs_of(answer)
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": found["content"] if found else []}
