"""`Plain`: how a server is asked that is not Memograft's, by OpenAI's protocol alone: vLLM with exported memories, ...

Documents are in the last user message, in the form that the engine gives it for chat templates without a place for
them. A memory is an adapter that the server has, asked for by its name as the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from memograft.client.protocol import Protocol, documents_of
from memograft.client.wire import ServedAnswer
from memograft.errors import SettingsError
from memograft.memory.report import MemoryReport
from memograft.memory.served import AS_SERVED, ServedMemory
from memograft.prompt.builder import render_documents
from memograft.request import Request, Timings, TokenLogprob, Usage
from memograft.storage.disk import JsonObject

__all__ = ["Plain"]

_NOT_TRAINED = "the server is not Memograft's, and memorizes nothing for a request: it has the model that was named"


class Plain(Protocol):
    """A server with OpenAI's protocol."""

    def body(self, request: Request) -> JsonObject:
        """The body for a request.

        Raises:
            SettingsError: the server would have to memorize, to shorten documents, or to leave open whether it calls.
        """
        body = super().body(request)
        if isinstance(request.memory, ServedMemory):
            body["model"] = request.memory.id or self.model
        elif request.memory is not None:
            raise SettingsError(
                f"`memory` must be the name of an adapter that the server has, or None, got "
                f"{type(request.memory).__name__}: this server is not Memograft's, and cannot memorize for a request; "
                "export memories with `memograft export`, or serve the model with `memograft serve`"
            )
        if request.json_optional:
            raise SettingsError(
                "`json_optional` is not in OpenAI's protocol, and this server is not Memograft's; pass `tools`, which "
                "leave the choice to the model, or a `json_schema` alone"
            )
        if request.overflow != "error" and request.documents:
            raise SettingsError(
                f'`overflow` must be "error", got {request.overflow!r}: this server is not Memograft\'s, and does not '
                "shorten documents; pass fewer"
            )
        if request.tools:
            # With a schema, the answer is text that follows it: JSON of a call, if one is forced.
            body["tool_choice"] = "auto" if request.json_schema is None else "none"
        body["messages"] = [_message(message) for message in body["messages"]]
        if documents := documents_of(request):
            asked = [n for n, message in enumerate(body["messages"]) if message["role"] == "user"] or [-1]
            last = body["messages"][asked[-1]]
            last["content"] = render_documents([document.text for document in documents], str(last["content"]))
        return body

    def answer(self, completion: JsonObject, request: Request, seconds: float) -> ServedAnswer:
        """The answer, as far as the protocol tells: without token ids, and with all its time as decoding."""
        choice = completion["choices"][0]
        message, usage = choice["message"], completion.get("usage") or {}
        details = usage.get("prompt_tokens_details") or {}
        served = isinstance(request.memory, ServedMemory)
        report = MemoryReport(
            id=request.memory.id if isinstance(request.memory, ServedMemory) else "",
            reused=served and request.memory != AS_SERVED,
            reason=_NOT_TRAINED if request.memory == AS_SERVED else None,
        )
        return ServedAnswer(
            text=message.get("content") or "",
            token_ids=(),
            finish_reason="length" if choice["finish_reason"] == "length" else "stop",
            usage=Usage(
                usage.get("prompt_tokens", 0), details.get("cached_tokens") or 0, usage.get("completion_tokens", 0)
            ),
            memory=report if served and documents_of(request) else None,
            timings=Timings(0.0, 0.0, seconds),
            documents=tuple(documents_of(request)),
            logprobs=_logprobs((choice.get("logprobs") or {}).get("content") or ()),
            message=message,
        )


def _message(message: Mapping[str, object]) -> JsonObject:
    """A message with the arguments of calls as JSON text."""
    plain: JsonObject = dict(message)
    if plain.get("tool_calls"):
        plain["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
            for call in plain["tool_calls"]
        ]
    return plain


def _logprobs(tokens: Sequence[JsonObject]) -> tuple[TokenLogprob, ...]:
    """Log-probabilities. The protocol has no token ids, so negative numbers stand for them: one for each text."""
    ids: dict[str, int] = {}

    def number(text: str) -> int:
        return ids.setdefault(text, -1 - len(ids))

    return tuple(
        TokenLogprob(
            number(each["token"]),
            each["token"],
            each["logprob"],
            tuple((number(top["token"]), top["token"], top["logprob"]) for top in each.get("top_logprobs") or ()),
        )
        for each in tokens
    )
