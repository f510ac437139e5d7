"""One call of an endpoint: what was given -> a request to the engine, and its answer -> LlamaIndex's responses."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.llms.memograft import _datastores, _react
from llama_index.llms.memograft._documents import to_documents
from llama_index.llms.memograft._errors import named
from llama_index.llms.memograft._messages import described, to_openai
from llama_index.llms.memograft._responses import chat_response, refuse_invalid, said
from memograft import Request, Sampling
from memograft.chat import Plan, plan, read_conversation, unknown_names, warn_of_context
from memograft.errors import RequestTimeoutError, SettingsError

if TYPE_CHECKING:
    from memograft import Answer, Engine

__all__ = ["DEFAULT_MEMORY", "OPTIONS", "Call", "checked_retries", "memory_of", "prepare", "refuse_unknown", "renamed"]

DEFAULT_MEMORY = "fastmem"  # FastMem() itself would import torch before there is a use for it

_SAMPLING = {"max_tokens": "max_new_tokens"} | {
    name: name
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "logit_bias", "seed", "stop")
}
_REQUEST = ("memory", "overflow", "timeout", "logprobs")
_ASKED = (
    "documents",
    "query",
    "json_schema",
    "response_format",
    "tools",
    "tool_choice",
    "tool_required",
    "allow_parallel_tool_calls",
)

_SHAPING = {"json_schema", "response_format", "tools", "tool_choice"}  # a call with one of these is no ReActAgent's

_OTHER_NAMES = {  # ChatMemograft's
    "model_name": "model",
    "stop_sequences": "stop",
    "top_logprobs": "logprobs",
    "parallel_tool_calls": "allow_parallel_tool_calls",
}
_ELSEWHERE = {  # what ChatMemograft has and this class has in another form
    "memory_id": "pass the handle that `memorize` returns as `memory`",
    "streaming": "call `stream_chat` or `stream_complete`",
    "stream": "call `stream_chat` or `stream_complete`",
}

# What an LLM has a setting for, and a call may change.
OPTIONS = (*_SAMPLING, *_REQUEST, "datastore", "context_delimiters", "max_retries")


@dataclass(frozen=True)
class Call:
    """A request on its way.

    Attributes:
        engine: where it goes.
        request: what is asked.
        model: the name that responses carry.
        plan: what tools and schema ask of the answer.
        react: whether the answer is for a ReActAgent, which reads calls from the text.
        retries: how often a request that timed out is tried again.
    """

    engine: Engine
    request: Request
    model: str
    plan: Plan
    react: bool = False
    retries: int = 0

    def answer(self) -> Answer:
        """The engine's answer.

        Raises:
            RequestTimeoutError: the time was up at each try.
        """
        with named():
            for _ in range(self.retries):
                with suppress(RequestTimeoutError):
                    return self.engine.answer(self.request)
            return self.engine.answer(self.request)

    async def aanswer(self) -> Answer:
        """`answer` without blocking."""
        with named():
            for _ in range(self.retries):
                with suppress(RequestTimeoutError):
                    return await self.engine.aanswer(self.request)
            return await self.engine.aanswer(self.request)

    def response(self, answer: Answer, shown: str | None = None) -> ChatResponse:
        """The whole answer; `shown`: what of it was streamed.

        Raises:
            ToolCallError: a ReActAgent's model wrote a call that cannot be executed, which the agent would take for its
                final answer.
        """
        reading = self.plan.read(self.engine, answer)
        if reading.invalid and not (reading.content or reading.calls):
            reading = replace(reading, content=answer.text)
        if self.react:
            reading = _react.written(reading)
        delta = None if shown is None else reading.rest(shown)
        response = chat_response(answer, reading, self.model, delta)
        if self.react:
            refuse_invalid(response)
        return response

    def chat(self) -> Generator[ChatResponse, None, None]:
        """Responses as they grow; the last has the facts. Closing it gives the request up."""
        text = shown = ""
        with named(), self.engine.stream(self.request) as stream:
            for piece in stream:
                text += piece
                before, shown = shown, self.plan.shown(text)
                if shown != before:
                    yield said(shown, shown[len(before) :])
            assert stream.answer is not None
            yield self.response(stream.answer, shown)

    async def achat(self) -> AsyncGenerator[ChatResponse, None]:
        """`chat` for `async for`."""
        text = shown = ""
        with named():
            async with self.engine.astream(self.request) as stream:
                async for piece in stream:
                    text += piece
                    before, shown = shown, self.plan.shown(text)
                    if shown != before:
                        yield said(shown, shown[len(before) :])
                assert stream.answer is not None
                yield self.response(stream.answer, shown)


@named()
def prepare(
    engine: Engine, model: str, settings: Mapping[str, Any], messages: Sequence[ChatMessage], given: Mapping[str, Any]
) -> Call:
    """Make a request of a call; options in `given` win over `settings`. Nothing is sent yet.

    Raises:
        SettingsError: an argument that there is not, or a value out of its range.
        ModelMismatchError: the datastore is of another model.
        StoreError: there is none in its folder.
    """
    options = renamed(given)
    refuse_unknown("a call of Memograft", options, (*OPTIONS, *_ASKED))
    query = options.pop("query", None)
    conversation = to_openai(messages)
    react = None if engine.takes_tools or options.keys() & _SHAPING else _react.read(conversation)
    if react is not None:
        conversation, options["tools"] = react
    asked = _plan(engine, options)
    documents = to_documents(options.pop("documents", None))
    values = {**settings, **options}
    told = read_conversation(
        conversation,
        documents,
        takes_tools=engine.takes_tools,
        takes_system=engine.takes_system,
        plan=asked,
        delimiters=values["context_delimiters"],
    )
    if not told.documents and asked.json_schema is None and values["memory"] is not None:
        prompts = [message for message in messages if message.role == MessageRole.SYSTEM] + list(messages[-1:])
        warn_of_context(
            [str(message.content or "") for message in prompts],
            "ask through a response synthesizer or a chat engine, pass `documents=`, or put them into CitableBlocks",
        )
    rtd = _datastores.opened(values["datastore"])
    if rtd is not None:
        rtd.check(engine.fingerprint)
    sampling = Sampling(**{core: values[ours] for ours, core in _SAMPLING.items() if values.get(ours) is not None})
    request = Request(
        messages=told.messages,
        documents=told.documents,
        query=query or told.query,
        processors=() if rtd is None else (rtd,),
        sampling=sampling,
        **asked.request(),
        **{name: values[name] for name in _REQUEST} | {"memory": memory_of(values["memory"])},
    )
    return Call(engine, request, model, asked, react is not None, checked_retries(values["max_retries"]))


def _plan(engine: Engine, options: dict[str, Any]) -> Plan:
    """What the options about tools and schemas, which are taken out, ask of the answer."""
    tools, choice = described(options.pop("tools", None) or ()), options.pop("tool_choice", None)
    if options.pop("tool_required", False) and tools and choice in (None, "auto"):
        choice = "any"
    schema = options.pop("json_schema", None)
    wanted = options.pop("response_format", None)
    if schema is not None:
        if wanted is not None:
            raise SettingsError("`json_schema` and `response_format` both describe the answer, got both; pass one")
        wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    return plan(engine, tools, choice, wanted, many=options.pop("allow_parallel_tool_calls", None))


def memory_of(value: Any) -> Any:
    """What `memory` says, as an engine takes it."""
    if not isinstance(value, str) or value != DEFAULT_MEMORY:
        return value
    from memograft import FastMem

    return FastMem()


def renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with Memograft's own name for each that other chat classes name otherwise.

    Raises:
        SettingsError: one is there under both names.
    """
    options = dict(given)
    logprobs, top = options.get("logprobs"), options.get("top_logprobs")
    if isinstance(logprobs, bool):  # ChatMemograft's: whether to report any, and how many beside it
        del options["logprobs"]
        options |= {"top_logprobs": (top or 0) if logprobs else None}
    for other, name in _OTHER_NAMES.items():
        if other in options:
            if name in options:
                raise SettingsError(f"`{other}` is another name of `{name}`, got both; pass one")
            options[name] = options.pop(other)
    if (n := options.pop("n", None)) not in (None, 1):
        raise SettingsError(
            f"`n` must be 1, got {n!r}: a response of LlamaIndex has one answer; ask several times, or use "
            "`llm.engine.answer_batch(request.copies(n))`"
        )
    return options


def checked_retries(value: Any) -> int:
    """`max_retries`.

    Raises:
        SettingsError: it is no whole number of 0 or more.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SettingsError(f"`max_retries` must be a whole number of 0 or more, got {value!r}; 0 tries once")
    return value


def refuse_unknown(what: str, options: Iterable[str], allowed: Iterable[str]) -> None:
    """Refuse arguments that do not exist, and suggest those that were probably meant.

    Raises:
        SettingsError: an argument does not exist.
    """
    allowed = list(allowed)
    for name in options:
        if name not in allowed and name in _ELSEWHERE:
            raise SettingsError(f"{what} has no {name!r}; {_ELSEWHERE[name]}")
    if unknown := unknown_names(options, allowed):
        raise SettingsError(f"{what} has no {unknown}")
