"""`Answer` -> LlamaIndex's responses, with token counts where its TokenCountingHandler looks for them."""

from __future__ import annotations

import copy
import json
import math
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
)
from llama_index.llms.memograft import _tools
from llama_index.llms.memograft._citations import citation_blocks, references
from memograft.documents import Document
from memograft.errors import SettingsError
from memograft.request import Answer, TokenLogprob

__all__ = ["about", "as_completion", "chat_response", "completion_response", "forced_blocks", "parsed_blocks", "said"]


def chat_response(
    answer: Answer, model: str, blocks: Sequence[ContentBlock] | None = None, delta: str | None = None
) -> ChatResponse:
    """The whole answer; `blocks` are its parts where it is more than text. Citations stand behind them."""
    parts = [TextBlock(text=answer.text)] if blocks is None else list(blocks)
    message = ChatMessage(role=MessageRole.ASSISTANT, blocks=parts)
    message.blocks += citation_blocks(answer, message.content or "")
    return ChatResponse(message=message, delta=delta, logprobs=_logprobs(answer.logprobs), **_facts(answer, model))


def completion_response(answer: Answer, model: str, delta: str | None = None) -> CompletionResponse:
    """The whole answer."""
    return CompletionResponse(
        text=answer.text, delta=delta, logprobs=_logprobs(answer.logprobs), **_facts(answer, model)
    )


def as_completion(response: ChatResponse) -> CompletionResponse:
    """A response of a stream, as one of a stream of completions."""
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        raw=copy.copy(response.raw),
        logprobs=response.logprobs,
        additional_kwargs=response.additional_kwargs,
    )


def said(text: str, delta: str) -> ChatResponse:
    """What was said so far, and its newest piece."""
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=delta)


def about(answer: Answer) -> dict[str, Any]:
    """What became of the documents, and what steered the answer, in values that JSON knows."""
    facts: dict[str, Any] = {
        "documents": _ids(answer.documents),
        "dropped": _ids(answer.dropped),
        "truncated": _ids(answer.truncated),
        "prefill_ms": round(answer.timings.prefill * 1000, 3),
        "memorize_ms": round(answer.timings.memorize * 1000, 3),
        "decode_ms": round(answer.timings.decode * 1000, 3),
    }
    if answer.references:
        facts["references"] = references(answer)
    report = answer.memory
    if report is None:
        return facts
    return facts | {
        "memory_id": report.id or None,
        "memorized": list(report.documents) if report.reason is None else [],
        "left_out": list(report.left_out),
        "relevance": [_number(value) for value in report.relevance],
        "disagree": [list(pair) for pair in report.disagree],
        "reused": report.reused,
        "steps": report.steps,
        "loss_before": _number(report.loss_before),
        "loss_after": _number(report.loss_after),
        "rolled_back": report.rolled_back,
        "reason": report.reason,
    }


def forced_blocks(answer: Answer) -> list[ContentBlock]:
    """An answer that was constrained to calls of tools."""
    return [*_tools.blocks(json.loads(answer.text))]


def parsed_blocks(message: dict[str, Any]) -> list[ContentBlock]:
    """What the tokenizer made of an answer to a prompt with tools.

    Raises:
        SettingsError: the model wrote a call that is none.
    """
    made: list[ContentBlock] = []
    if message.get("thinking"):
        made.append(ThinkingBlock(content=str(message["thinking"])))
    if message.get("content"):
        made.append(TextBlock(text=str(message["content"])))
    try:
        made += _tools.blocks(message.get("tool_calls") or [])
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise SettingsError(
            f"the model called a tool in a form that cannot be read, got {message['tool_calls']!r}; pass "
            "tool_required=True, which constrains it to calls"
        ) from e
    return made or [TextBlock(text="")]


def _facts(answer: Answer, model: str) -> dict[str, Any]:
    usage = {
        "prompt_tokens": answer.usage.prompt_tokens,
        "completion_tokens": answer.usage.completion_tokens,
        "total_tokens": answer.usage.prompt_tokens + answer.usage.completion_tokens,
    }
    memograft = about(answer)
    raw = {
        "model": model,
        "finish_reason": answer.finish_reason,
        "usage": {**usage, "prompt_tokens_details": {"cached_tokens": answer.usage.cached_tokens}},
        "memograft": memograft,
    }
    more = {"cached_tokens": answer.usage.cached_tokens, "finish_reason": answer.finish_reason, "memograft": memograft}
    return {"raw": raw, "additional_kwargs": {**usage, **more}}


def _logprobs(tokens: Sequence[TokenLogprob]) -> list[list[LogProb]] | None:
    """For each token itself, then the likeliest others at its place."""

    def places(t: TokenLogprob) -> list[LogProb]:
        return [_logprob(t.text, t.logprob), *(_logprob(text, p) for id, text, p in t.top if id != t.token_id)]

    return [places(token) for token in tokens] or None


def _logprob(text: str, value: float) -> LogProb:
    return LogProb(token=text, logprob=value, bytes=list(text.encode("utf-8", "replace")))


def _ids(documents: Sequence[Document]) -> list[str]:
    return [document.id for document in documents]


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
