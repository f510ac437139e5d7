"""Convert an engine's answer to LangChain's messages and chunks, with token counts and the report on the documents."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk
from memograft.chat import Reading, finish_reason_of, logprobs_of, report_of

from langchain_memograft._citations import content_of
from langchain_memograft._tools import calls_of, invalid_calls_of

if TYPE_CHECKING:
    from memograft import Answer

__all__ = ["PROVIDER", "last_chunk", "message_of", "metadata_of", "usage_of"]

PROVIDER = "memograft"


def message_of(answer: Answer, reading: Reading, model: str) -> AIMessage:
    """Return the whole answer as one message."""
    return AIMessage(
        content=content_of(answer, reading.content),
        tool_calls=calls_of(reading),
        invalid_tool_calls=invalid_calls_of(reading),
        **_about(answer, reading, model),
    )


def last_chunk(answer: Answer, reading: Reading, model: str, *, streamed: str) -> AIMessageChunk:
    """Return the last chunk of a stream: usage, metadata, and the content that is not in `streamed` yet."""
    return AIMessageChunk(
        content=content_of(answer, reading.content, rest=reading.rest(streamed)),
        tool_call_chunks=_call_chunks(reading),
        chunk_position="last",
        **_about(answer, reading, model),
    )


def usage_of(answer: Answer) -> UsageMetadata:
    """Return token counts; `cache_read` is the number of tokens whose keys and values came from a memory."""
    usage = answer.usage
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details={"cache_read": usage.cached_tokens},
    )


def metadata_of(answer: Answer, model: str, reading: Reading | None = None) -> dict[str, Any]:
    """Return `response_metadata`, which is JSON; "memograft" is the report of `memograft.chat.report_of`."""
    metadata: dict[str, Any] = {
        "model_name": model,
        "model_provider": PROVIDER,
        "finish_reason": finish_reason_of(answer, reading or Reading(answer.text)),
        "memograft": report_of(answer),
    }
    logprobs = logprobs_of(answer)
    return metadata if logprobs is None else {**metadata, "logprobs": logprobs}


def _about(answer: Answer, reading: Reading, model: str) -> dict[str, Any]:
    return {
        "additional_kwargs": {"reasoning_content": reading.reasoning} if reading.reasoning else {},
        "usage_metadata": usage_of(answer),
        "response_metadata": metadata_of(answer, model, reading),
    }


def _call_chunks(reading: Reading) -> list[ToolCallChunk]:
    calls = [(call.name, json.dumps(call.arguments), call.id) for call in reading.calls]
    # As a JSON string, because LangChain completes the JSON object of a call that was cut off, and would execute it.
    calls += [(call.name or "", json.dumps(call.text, ensure_ascii=False), call.id) for call in reading.invalid]
    return [tool_call_chunk(name=n, args=a, id=i, index=index) for index, (n, a, i) in enumerate(calls)]
