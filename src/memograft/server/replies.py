"""Answers of the engine -> responses and chunks of streams, in OpenAI's form."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from memograft.chat import Reading, finish_reason_of, logprobs_of, message_of, report_of
from memograft.client import answer_to_json
from memograft.engine import Engine
from memograft.page import tokens_of
from memograft.request import Answer
from memograft.server.asking import Asked
from memograft.server.journal import Facts
from memograft.server.owned import cited
from memograft.server.rows import Pieces

__all__ = ["ChatReply", "CompletionReply", "usage_for"]

Json = dict[str, object]


@dataclass(frozen=True)
class _Reply:
    """What the responses of both routes have in common.

    Attributes:
        engine: made the answers.
        asked: the requests.
        model: its id, for the response.
        usage: whether a stream ends with a chunk that has the token counts.
        id: of the response.
        created: seconds since 1970.
    """

    engine: Engine
    asked: Asked
    model: str
    usage: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    prefix = ""
    kind = ""

    def head(self, kind: str) -> Json:
        """The values with which each response and chunk begins."""
        about = {"id": f"{self.prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}
        return {**about, "system_fingerprint": f"fp_{self.engine.fingerprint[:16]}"}

    def whole(self, answers: Sequence[Answer]) -> Json:
        """The response with all answers."""
        choices = [self.choice(n, answer) for n, answer in enumerate(answers)]
        if len(answers) > 1:
            choices = [{**choice, **self.report(answer)} for choice, answer in zip(choices, answers, strict=True)]
        body = {**self.head(self.kind), "choices": choices, "usage": usage_for(self.asked, answers)}
        return body if len(answers) > 1 else {**body, **self.report(answers[0])}

    def choice(self, number: int, answer: Answer) -> Json:
        """An answer as one of a response's choices."""
        raise NotImplementedError

    def chunk(self, choices: Sequence[Json]) -> Json:
        """A chunk of a stream."""
        return {**self.head(self.kind), "choices": list(choices), **({"usage": None} if self.usage else {})}

    def last(self, answers: Sequence[Answer]) -> Json:
        """The chunk with the token counts."""
        return {**self.chunk([]), "usage": usage_for(self.asked, answers)}

    def report(self, answer: Answer) -> Json:
        """Our field: what was done with the request's documents; nothing if it has none."""
        if self.asked.raw:
            return {"memograft": {"answer": answer_to_json(answer, self._parsed(answer))}}
        if not self.asked.reports:
            return {}
        citations = cited(self.text(answer), answer.documents)
        own = self.asked.own.report({citation["document"] for citation in citations})
        losses = {"token_losses": self._losses(answer)} if self.asked.token_losses else {}
        return {"memograft": {"kind": self.asked.kind, **report_of(answer), "citations": citations, **own, **losses}}

    def _losses(self, answer: Answer) -> list[Json]:
        """The memorized tokens as text, each with its losses and the id of its document."""
        report = answer.memory
        if report is None:
            return []
        known = [document for document in answer.documents if document.id in report.documents]
        tokens = tokens_of(self.engine.decode, report, [document.text for document in known])
        ids: list[str | None] = [document.id for document in known] or [None]
        return [
            {"text": t.text, "before": _finite(t.before), "after": _finite(t.after), "document": ids[t.number]}
            for t in tokens
        ]

    def _parsed(self, answer: Answer) -> Json | None:
        """The answer as the model's tokenizer parses it, if the template showed tools."""
        if not self.asked.plan.tools or not self.engine.takes_tools:
            return None
        try:
            return self.engine.parse_response(answer)
        except Exception as error:  # response templates can raise anything
            return {"error": str(error)}

    def text(self, answer: Answer) -> str:
        """The text of an answer that the client sees."""
        return answer.text


class ChatReply(_Reply):
    """Responses of /v1/chat/completions."""

    prefix, kind = "chatcmpl", "chat.completion"

    def choice(self, number: int, answer: Answer) -> Json:
        """An answer as one of a response's choices."""
        reading = self._read(answer)
        return {
            "index": number,
            "message": {**message_of(reading), "refusal": None},
            "logprobs": _logprobs(answer),
            "finish_reason": finish_reason_of(answer, reading),
        }

    def text(self, answer: Answer) -> str:
        """The text of an answer that the client sees."""
        return self._read(answer).content or ""

    def chunk(self, choices: Sequence[Json]) -> Json:
        """A chunk of a stream."""
        return {**super().chunk(choices), "object": "chat.completion.chunk"}

    async def chunks(self, pieces: Pieces, facts: Facts) -> AsyncIterator[Json]:
        """The chunks of a stream: for each choice its role, its text, its tool calls and the end."""
        said = [""] * len(self.asked.requests)
        shown = [""] * len(said)
        answers: dict[int, Answer] = {}
        for number in range(len(said)):
            yield self.chunk([_delta(number, {"role": "assistant", "content": "", "refusal": None})])
        async for number, piece in pieces:
            facts.piece()
            if isinstance(piece, str):
                said[number] += piece
                if new := self.asked.plan.shown(said[number])[len(shown[number]) :]:
                    shown[number] += new
                    yield self.chunk([_delta(number, {"content": new})])
                continue
            answers[number] = piece
            reading = self._read(piece)
            delta: Json = {"content": rest} if (rest := reading.rest(shown[number])) else {}
            if reading.calls:
                delta["tool_calls"] = [{"index": n, **call.to_openai()} for n, call in enumerate(reading.calls)]
            if reading.reasoning:
                delta["reasoning_content"] = reading.reasoning
            logprobs = _logprobs(piece)
            if delta or logprobs:
                yield self.chunk([{**_delta(number, delta), "logprobs": logprobs}])
            end = {**_delta(number, {}), "finish_reason": finish_reason_of(piece, reading)}
            yield {**self.chunk([end]), **await asyncio.to_thread(self.report, piece)}
        facts.answered(ended := [answers[number] for number in sorted(answers)])
        if self.usage:
            yield self.last(ended)

    def _read(self, answer: Answer) -> Reading:
        """The parsed answer. A call that cannot be executed is text, so that no client executes it."""
        reading = self.asked.plan.read(self.engine, answer)
        if reading.invalid and not reading.calls:
            return Reading(reading.content or answer.text, reasoning=reading.reasoning)
        return reading


class CompletionReply(_Reply):
    """Responses of /v1/completions."""

    prefix, kind = "cmpl", "text_completion"

    def choice(self, number: int, answer: Answer) -> Json:
        """An answer as one of a response's choices."""
        return _text_choice(number, answer.text, _text_logprobs(answer), answer.finish_reason)

    async def chunks(self, pieces: Pieces, facts: Facts) -> AsyncIterator[Json]:
        """The chunks of a stream."""
        answers: dict[int, Answer] = {}
        async for number, piece in pieces:
            facts.piece()
            if isinstance(piece, str):
                yield self.chunk([_text_choice(number, piece)])
                continue
            answers[number] = piece
            end = _text_choice(number, "", _text_logprobs(piece), piece.finish_reason)
            yield {**self.chunk([end]), **await asyncio.to_thread(self.report, piece)}
        facts.answered(ended := [answers[number] for number in sorted(answers)])
        if self.usage:
            yield self.last(ended)


def usage_for(asked: Asked, answers: Sequence[Answer]) -> Json:
    """Token counts of all answers. The prompt of several answers to it counts once, as with OpenAI."""
    each = [answer.usage for answer in answers]
    prompts = each[:: asked.copies]
    prompt, completion = sum(u.prompt_tokens for u in prompts), sum(u.completion_tokens for u in each)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(u.cached_tokens for u in prompts)},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _delta(number: int, delta: Json) -> Json:
    return {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}


def _logprobs(answer: Answer) -> Json | None:
    found = logprobs_of(answer)
    return None if found is None else {**found, "refusal": None}


def _text_choice(number: int, text: str, logprobs: Json | None = None, reason: str | None = None) -> Json:
    return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _text_logprobs(answer: Answer) -> Json | None:
    """The older form of log-probabilities: lists for all tokens. An offset is where a token begins in the text."""
    if not answer.logprobs:
        return None
    offsets, end = [], 0
    for token in answer.logprobs:
        offsets.append(min(end, len(answer.text)))
        end += len(token.text)
    return {
        "tokens": [token.text for token in answer.logprobs],
        "token_logprobs": [token.logprob for token in answer.logprobs],
        "top_logprobs": [{text: logprob for _, text, logprob in token.top} for token in answer.logprobs],
        "text_offset": offsets,
    }
