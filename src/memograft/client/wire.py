"""Answers as JSON: between `memograft serve` and `RemoteEngine`. Numbers that are not finite become null."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields

from memograft.chat import json_like
from memograft.documents import Document
from memograft.memory.report import MemoryReport
from memograft.request import Answer, Timings, TokenLogprob, Usage
from memograft.storage.disk import JsonObject

__all__ = ["ServedAnswer", "answer_from_json", "answer_to_json", "report_from_json"]


@dataclass(frozen=True)
class ServedAnswer(Answer):
    """An answer of a server.

    Attributes:
        message: the answer as the server parsed it, in OpenAI's form; None if the request offered no tools.
    """

    message: JsonObject | None = field(default=None, repr=False)


def answer_to_json(answer: Answer, message: JsonObject | None = None) -> JsonObject:
    """All of an answer; `message` is the answer as the model's tokenizer parses it."""
    return {**json_like(asdict(answer)), "message": message}


def answer_from_json(values: JsonObject) -> ServedAnswer:
    """What `answer_to_json` wrote, without `references`."""

    def documents(name: str) -> tuple[Document, ...]:
        return tuple(Document(**each) for each in values[name])

    return ServedAnswer(
        text=values["text"],
        token_ids=tuple(values["token_ids"]),
        finish_reason=values["finish_reason"],
        usage=Usage(**values["usage"]),
        memory=None if values["memory"] is None else report_from_json(values["memory"]),
        timings=Timings(**values["timings"]),
        documents=documents("documents"),
        dropped=documents("dropped"),
        truncated=documents("truncated"),
        logprobs=tuple(map(_logprob, values["logprobs"])),
        prompt_ids=tuple(values["prompt_ids"]),
        message=values["message"],
    )


def report_from_json(values: JsonObject) -> MemoryReport:
    """A report from those of its fields that are in a JSON object."""
    known = {each.name: str(each.type) for each in fields(MemoryReport) if each.name in values}
    return MemoryReport(**{name: _as(kind, values[name]) for name, kind in known.items()})  # type: ignore[arg-type]


def _as(kind: str, value: object) -> object:
    """A value of a report for a field of this type."""
    if isinstance(value, list):
        return tuple(_as("float" if "float" in kind else "", each) for each in value)
    return math.nan if value is None and kind == "float" else value


def _logprob(values: JsonObject) -> TokenLogprob:
    top: Sequence[Sequence[object]] = values["top"]
    likeliest = tuple((id, text, _as("float", logprob)) for id, text, logprob in top)
    return TokenLogprob(values["token_id"], values["text"], values["logprob"], likeliest)  # type: ignore[arg-type]
