"""Convert `Answer`s to LlamaIndex's responses, with token counts in the form for its TokenCountingHandler."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.llms.memograft._citations import citation_blocks
from llama_index.llms.memograft._errors import ToolCallError
from memograft import Answer, TokenLogprob
from memograft.chat import InvalidCall, Reading, finish_reason_of, report_of, usage_of

__all__ = ["as_completion", "chat_response", "completion_response", "refuse_invalid", "said"]

_INVALID = "invalid_tool_calls"


def chat_response(answer: Answer, reading: Reading, model: str, delta: str | None = None) -> ChatResponse:
    """The response with the whole answer. In its message, calls and citations follow the text."""
    blocks: list[ContentBlock] = [ThinkingBlock(content=reading.reasoning)] if reading.reasoning else []
    if reading.content or not reading.calls:
        blocks.append(TextBlock(text=reading.content))
    blocks += [ToolCallBlock(tool_call_id=c.id, tool_name=c.name, tool_kwargs=c.arguments) for c in reading.calls]
    message = ChatMessage(role=MessageRole.ASSISTANT, blocks=[*blocks, *citation_blocks(answer, reading.content)])
    return ChatResponse(
        message=message, delta=delta, logprobs=_logprobs(answer.logprobs), **_facts(answer, reading, model)
    )


def completion_response(answer: Answer, model: str, delta: str | None = None) -> CompletionResponse:
    """The response with the whole answer."""
    return CompletionResponse(
        text=answer.text,
        delta=delta,
        logprobs=_logprobs(answer.logprobs),
        **_facts(answer, Reading(answer.text), model),
    )


def as_completion(response: ChatResponse) -> CompletionResponse:
    """Convert a response of a chat stream to one of a completion stream."""
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        raw=copy.copy(response.raw),
        logprobs=response.logprobs,
        additional_kwargs=response.additional_kwargs,
    )


def refuse_invalid(response: ChatResponse) -> None:
    """Refuse a response with a tool call that cannot be executed.

    Raises:
        ToolCallError: there is one, such as a call that was cut off.
    """
    for call in response.additional_kwargs.get(_INVALID, ()):
        raise ToolCallError(f"{call['error']}; got {call['args']!r:.200}")


def said(text: str, delta: str) -> ChatResponse:
    """The response in a stream with the text so far and its last piece."""
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=delta)


def _facts(answer: Answer, reading: Reading, model: str) -> dict[str, Any]:
    usage = usage_of(answer)
    counts = {name: count for name, count in usage.items() if isinstance(count, int)}
    counts["cached_tokens"] = answer.usage.cached_tokens
    about: dict[str, Any] = {"finish_reason": finish_reason_of(answer, reading), "memograft": report_of(answer)}
    if reading.invalid:
        about[_INVALID] = [_invalid(call) for call in reading.invalid]
    return {"raw": {"model": model, "usage": usage, **about}, "additional_kwargs": {**counts, **about}}


def _invalid(call: InvalidCall) -> dict[str, str | None]:
    """A call that cannot be executed, with the keys of LangChain's InvalidToolCall."""
    error = call.error.replace("`max_new_tokens`", "`max_tokens`")
    return {"id": call.id, "name": call.name, "args": call.text, "error": error}


def _logprobs(tokens: Sequence[TokenLogprob]) -> list[list[LogProb]] | None:
    """For each token, its log-probability and those of the most likely other tokens at its position."""

    def places(t: TokenLogprob) -> list[LogProb]:
        return [_logprob(t.text, t.logprob), *(_logprob(text, p) for id, text, p in t.top if id != t.token_id)]

    return [places(token) for token in tokens] or None


def _logprob(text: str, value: float) -> LogProb:
    return LogProb(token=text, logprob=value, bytes=list(text.encode("utf-8", "replace")))
