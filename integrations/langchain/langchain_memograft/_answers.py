"""An engine's answer -> LangChain's messages and chunks, with usage and what memorizing did."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk

from langchain_memograft._citations import content_of, references_of

if TYPE_CHECKING:
    from memograft import Answer

    from langchain_memograft._tools import Reading

__all__ = ["PROVIDER", "last_chunk", "logprobs_of", "message_of", "metadata_of", "usage_of"]

PROVIDER = "memograft"


def message_of(answer: Answer, reading: Reading, model: str) -> AIMessage:
    """The whole answer as one message."""
    return AIMessage(
        content=content_of(answer, reading.content),
        tool_calls=reading.tool_calls,
        invalid_tool_calls=reading.invalid_tool_calls,
        additional_kwargs=_thoughts(reading),
        usage_metadata=usage_of(answer),
        response_metadata=metadata_of(answer, model, calls=bool(reading.tool_calls)),
    )


def last_chunk(answer: Answer, reading: Reading, model: str, *, streamed: bool) -> AIMessageChunk:
    """The chunk that ends a stream: usage, metadata, and all that was not `streamed` before it."""
    return AIMessageChunk(
        content=content_of(answer, reading.content, streamed=streamed),
        tool_call_chunks=_call_chunks(reading),
        additional_kwargs=_thoughts(reading),
        usage_metadata=usage_of(answer),
        response_metadata=metadata_of(answer, model, calls=bool(reading.tool_calls)),
        chunk_position="last",
    )


def usage_of(answer: Answer) -> UsageMetadata:
    """Token counts; `cache_read` are those of a memory's documents, whose keys and values were there already."""
    usage = answer.usage
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details={"cache_read": usage.cached_tokens},
    )


def metadata_of(answer: Answer, model: str, *, calls: bool = False) -> dict[str, Any]:
    """`response_metadata`: JSON-like; what memorizing did and what steered stands under "memograft"."""
    metadata: dict[str, Any] = {
        "model_name": model,
        "model_provider": PROVIDER,
        "finish_reason": "tool_calls" if calls and answer.finish_reason == "stop" else answer.finish_reason,
        "memograft": _memory_of(answer),
    }
    if answer.logprobs:
        metadata["logprobs"] = logprobs_of(answer)
    return metadata


def logprobs_of(answer: Answer) -> dict[str, Any]:
    """Log-probabilities in OpenAI's form."""
    content = []
    for token in answer.logprobs:
        top = [_logprob(text, logprob) for _, text, logprob in token.top]
        content.append({**_logprob(token.text, token.logprob), "top_logprobs": top})
    return {"content": content}


def _logprob(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": _number(logprob), "bytes": list(text.encode("utf-8", "replace"))}


def _memory_of(answer: Answer) -> dict[str, Any]:
    """What the documents came to; ids of documents throughout, times those of the batch the request ran in."""
    steered = {"references": references_of(answer)} if answer.references else {}
    about: dict[str, Any] = {
        **steered,
        "documents": [d.id for d in answer.documents],
        "dropped": [d.id for d in answer.dropped],
        "truncated": [d.id for d in answer.truncated],
        "milliseconds": {
            stage: round(getattr(answer.timings, stage) * 1000, 3) for stage in ("prefill", "memorize", "decode")
        },
    }
    report = answer.memory
    if report is None:
        return about | {"memory_id": None, "memorized": []}
    return about | {
        "memory_id": report.id or None,
        "memorized": list(report.documents),
        "left_out": list(report.left_out),
        "relevance": [_number(value) for value in report.relevance],
        "disagree": [list(pair) for pair in report.disagree],
        "reused": report.reused,
        "steps": report.steps,
        "loss_before": _number(report.loss_before),
        "loss_after": _number(report.loss_after),
        "kl": _number(report.kl),
        "rolled_back": report.rolled_back,
        "reason": report.reason,
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _thoughts(reading: Reading) -> dict[str, Any]:
    return {"reasoning_content": reading.reasoning} if reading.reasoning else {}


def _call_chunks(reading: Reading) -> list[ToolCallChunk]:
    calls = [(call["name"], json.dumps(call["args"]), call["id"]) for call in reading.tool_calls]
    calls += [(call["name"] or "", call["args"] or "", call["id"]) for call in reading.invalid_tool_calls]
    return [tool_call_chunk(name=n, args=a, id=i, index=index) for index, (n, a, i) in enumerate(calls)]
