"""Convert an engine's answer to plain data in OpenAI's form, with a report about the documents. All values are JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence

from memograft.chat.calls import Reading
from memograft.chat.citations import references_of
from memograft.documents import Document
from memograft.memory.report import MemoryReport
from memograft.request import Answer, TokenLogprob

__all__ = ["finish_reason_of", "logprobs_of", "message_of", "report_of", "usage_of"]


def usage_of(answer: Answer) -> dict[str, object]:
    """Token counts; `cached_tokens` are prompt tokens whose keys and values were cached."""
    usage = answer.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def finish_reason_of(answer: Answer, reading: Reading) -> str:
    """ "stop", "length" or "tool_calls"."""
    return "tool_calls" if reading.calls and answer.finish_reason == "stop" else answer.finish_reason


def message_of(reading: Reading) -> dict[str, object]:
    """The assistant's message. `content` is None beside calls; `reasoning_content` is present if there is any."""
    message: dict[str, object] = {"role": "assistant", "content": reading.content}
    if reading.reasoning:
        message["reasoning_content"] = reading.reasoning
    if reading.calls:
        message["content"] = reading.content or None
        message["tool_calls"] = [call.to_openai() for call in reading.calls]
    return message


def logprobs_of(answer: Answer) -> dict[str, object] | None:
    """Log-probabilities (natural logarithms) of the tokens; None if the request did not ask for them."""
    return {"content": [_token(token) for token in answer.logprobs]} if answer.logprobs else None


def report_of(answer: Answer) -> dict[str, object]:
    """A report about documents, memory and datastore. Its keys are the same with and without a memory.

        documents, dropped, truncated   ids: in the prompt; left out or shortened because the prompt was too long
        memory_id                       of the memory, if it was kept or reused
        memorized, left_out             ids; `memorized` is empty if the memory was rolled back
        relevance                       for each of `documents`, 1 at most; disagree: pairs of ids
        reused, steps, loss_before, loss_after, kl, rolled_back, reason, warnings    see `MemoryReport`
        milliseconds                    {prefill, memorize, decode}, for the request's batch
        references                      see `references_of`; None without a datastore

    Missing values are None.
    """
    report = answer.memory or MemoryReport(kl=math.nan)
    times = answer.timings
    return {
        "documents": _ids(answer.documents),
        "dropped": _ids(answer.dropped),
        "truncated": _ids(answer.truncated),
        "memory_id": report.id or None,
        "memorized": [] if report.rolled_back or report.reason is not None else list(report.documents),
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
        "warnings": list(report.warnings),
        "milliseconds": {
            "prefill": round(times.prefill * 1000, 3),
            "memorize": round(times.memorize * 1000, 3),
            "decode": round(times.decode * 1000, 3),
        },
        "references": references_of(answer) if answer.references else None,
    }


def _token(token: TokenLogprob) -> dict[str, object]:
    top = [_logprob(text, logprob) for _, text, logprob in token.top]
    return {**_logprob(token.text, token.logprob), "top_logprobs": top}


def _logprob(text: str, logprob: float) -> dict[str, object]:
    return {"token": text, "logprob": _number(logprob), "bytes": list(text.encode("utf-8", "replace"))}


def _ids(documents: Sequence[Document]) -> list[str]:
    return [document.id for document in documents]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
