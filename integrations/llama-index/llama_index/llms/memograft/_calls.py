"""`Call`: the request to the engine for a call of an endpoint, and the conversion of its answer to a response."""

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
from memograft.memory.served import AS_SERVED, served_memory
from memograft.shared import refuse_local

if TYPE_CHECKING:
    from memograft import Answer, Cad, Dola, Engine, RemoteEngine

__all__ = [
    "DEFAULT_MEMORY",
    "OPTIONS",
    "Call",
    "checked_retries",
    "contrasts_of",
    "memory_of",
    "prepare",
    "refuse_unknown",
    "renamed",
]

DEFAULT_MEMORY = "fastmem"  # a string, because FastMem() would import torch with this module

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

_SHAPING = {"json_schema", "response_format", "tools", "tool_choice"}  # a ReActAgent does not pass these

_OTHER_NAMES = {  # names in ChatMemograft
    "model_name": "model",
    "stop_sequences": "stop",
    "top_logprobs": "logprobs",
    "parallel_tool_calls": "allow_parallel_tool_calls",
}
_ELSEWHERE = {  # arguments of ChatMemograft that this class has in another form
    "memory_id": "pass the handle that `memorize` returns as `memory`",
    "streaming": "call `stream_chat` or `stream_complete`",
    "stream": "call `stream_chat` or `stream_complete`",
}

# Settings of an LLM that the arguments of a call can override.
OPTIONS = (*_SAMPLING, *_REQUEST, "datastore", "cad", "dola", "context_delimiters", "max_retries")


@dataclass(frozen=True)
class Call:
    """A call of an endpoint.

    Attributes:
        engine: the engine.
        request: the request to it.
        model: the model's name in responses.
        plan: how to parse the answer, according to the tools and the schema.
        react: whether the answer is for a ReActAgent, which parses tool calls from the text.
        retries: how often the request is repeated after a timeout.
    """

    engine: Engine | RemoteEngine
    request: Request
    model: str
    plan: Plan
    react: bool = False
    retries: int = 0

    def answer(self) -> Answer:
        """The engine's answer.

        Raises:
            RequestTimeoutError: each attempt timed out.
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
        """The response with the whole answer; `shown` is the part that was streamed.

        Raises:
            ToolCallError: the answer for a ReActAgent has a tool call that cannot be executed. The agent would take the
                text for its final answer.
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
        """A stream of responses; the last one has the metadata. Closing the generator cancels the request."""
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
    engine: Engine | RemoteEngine,
    model: str,
    settings: Mapping[str, Any],
    messages: Sequence[ChatMessage],
    given: Mapping[str, Any],
    base_url: str | None = None,
) -> Call:
    """Create a `Call`, without sending its request. Arguments in `given` override `settings`.

    Raises:
        SettingsError: an argument is unknown, or a value is out of its range.
        ModelMismatchError: the datastore was built with another model.
        StoreError: the folder has no datastore.
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
            "use a response synthesizer or a chat engine, pass `documents=`, or put them into CitableBlocks",
        )
    if base_url is not None:
        refuse_local({"datastore": values["datastore"]})
    rtd = _datastores.opened(values["datastore"])
    if rtd is not None:
        rtd.check(engine.fingerprint)  # type: ignore[union-attr]
    sampling = Sampling(**{core: values[ours] for ours, core in _SAMPLING.items() if values.get(ours) is not None})
    request = Request(
        messages=told.messages,
        documents=told.documents,
        query=query or told.query,
        processors=[*([] if rtd is None else [rtd]), *contrasts_of(values["cad"], values["dola"])],
        sampling=sampling,
        **asked.request(),
        **{name: values[name] for name in _REQUEST} | {"memory": memory_of(values["memory"], base_url)},
    )
    return Call(engine, request, model, asked, react is not None, checked_retries(values["max_retries"]))


def _plan(engine: Engine | RemoteEngine, options: dict[str, Any]) -> Plan:
    """The plan for the tools and the schema in `options`, which are removed from it."""
    tools, choice = described(options.pop("tools", None) or ()), options.pop("tool_choice", None)
    if options.pop("tool_required", False) and tools and choice in (None, "auto"):
        choice = "any"
    schema = options.pop("json_schema", None)
    wanted = options.pop("response_format", None)
    if schema is not None:
        if wanted is not None:
            raise SettingsError("`json_schema` and `response_format` both set the answer's form, got both; pass one")
        wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    return plan(engine, tools, choice, wanted, many=options.pop("allow_parallel_tool_calls", None))


def contrasts_of(cad: Any, dola: Any) -> list[Cad | Dola]:
    """The processors for the settings `cad` and `dola`; None is none. torch is imported only if there is one.

    Raises:
        SettingsError: a value is out of its range.
    """
    if cad is None and dola is None:
        return []
    from memograft.decoding.cad import contrasts

    return contrasts(cad, dola)


def memory_of(value: Any, base_url: str | None = None) -> Any:
    """The value of `memory` in the form for an engine, or for the server at `base_url`.

    Raises:
        SettingsError: the server cannot use it.
    """
    if base_url is not None:
        return AS_SERVED if value == DEFAULT_MEMORY else served_memory(value)
    if not isinstance(value, str) or value != DEFAULT_MEMORY:
        return value
    from memograft import FastMem

    return FastMem()


def renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with the names of ChatMemograft replaced by those of this class.

    Raises:
        SettingsError: an option has both names, or `n` is not 1.
    """
    options = dict(given)
    logprobs, top = options.get("logprobs"), options.get("top_logprobs")
    if isinstance(logprobs, bool):  # in ChatMemograft a bool, and `top_logprobs` is the number
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
    """The value of `max_retries`.

    Raises:
        SettingsError: it is not a whole number of 0 or more.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SettingsError(f"`max_retries` must be a whole number of 0 or more, got {value!r}; 0 tries once")
    return value


def refuse_unknown(what: str, options: Iterable[str], allowed: Iterable[str]) -> None:
    """Refuse unknown arguments, and suggest similar names.

    Raises:
        SettingsError: an argument is unknown.
    """
    allowed = list(allowed)
    for name in options:
        if name not in allowed and name in _ELSEWHERE:
            raise SettingsError(f"{what} has no {name!r}; {_ELSEWHERE[name]}")
    if unknown := unknown_names(options, allowed):
        raise SettingsError(f"{what} has no {unknown}")
