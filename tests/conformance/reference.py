"""The expected answer as plain data, from `memograft.chat` and an engine alone. Fronts are compared with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from conformance.front import Message, Said
from memograft import Engine, FastMem, Request, Rtd, Sampling
from memograft.chat import (
    citations_of,
    excerpt,
    finish_reason_of,
    message_text,
    plan,
    read_conversation,
    report_of,
    title_of,
    to_documents,
    usage_of,
)
from memograft.decoding.cad import contrasts

__all__ = ["answered"]

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "logit_bias", "stop", "seed")


def answered(
    engine: Engine,
    messages: Sequence[Message],
    *,
    documents: Sequence[Any] | None = None,
    memory: Any = "fastmem",
    datastore: Rtd | None = None,
    cad: Any = None,
    dola: Any = None,
    tools: Sequence[Any] = (),
    tool_choice: Any = None,
    parallel: bool | None = None,
    response_format: Any = None,
    max_tokens: int = 32,
    **options: Any,
) -> Said:
    """The answer of an engine; the arguments are those of `Front.ask`."""
    how = plan(engine, tools, tool_choice, response_format, many=parallel)
    forms = {"takes_tools": engine.takes_tools, "takes_system": engine.takes_system, "plan": how}
    told = read_conversation(messages, None if documents is None else to_documents(documents), **forms)
    chosen = {name: options.pop(name) for name in _SAMPLING if name in options}
    request = Request(
        messages=told.messages,
        documents=told.documents,
        memory=FastMem() if memory == "fastmem" else memory,
        processors=[*([] if datastore is None else [datastore]), *contrasts(cad, dola)],
        query=options.pop("query", None) or told.query,
        sampling=Sampling(max_tokens, **chosen),
        **how.request(),
        **options,
    )
    answer = engine.answer(request)
    reading = how.read(engine, answer)
    usage = usage_of(answer)
    cited: list[Any] = citations_of(answer, reading.content)
    return Said(
        text=reading.content,
        calls=tuple((call.name, call.arguments) for call in reading.calls),
        invalid=tuple(message_text(ValueError(call.error)) for call in reading.invalid),
        citations=tuple(
            {
                "start": one["start"],
                "end": one["end"],
                "source": one["source"]["id"],
                "title": title_of(one["source"]),
                "text": excerpt(one["source"]["text"], one["text"]),
            }
            for one in cited
        ),
        report=report_of(answer),
        usage={
            "prompt": usage["prompt_tokens"],
            "completion": usage["completion_tokens"],
            "total": usage["total_tokens"],
            "cached": answer.usage.cached_tokens,
        },
        finish_reason=finish_reason_of(answer, reading),
        logprobs=[(token.text, token.logprob) for token in answer.logprobs] or None,
    )
