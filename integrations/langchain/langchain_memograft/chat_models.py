"""`ChatMemograft`: a local chat model that memorizes the documents of a request before it answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.exceptions import ModelError
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list
from langchain_core.tools import BaseTool
from memograft.chat import Plan, choice_of, plan
from memograft.errors import SettingsError
from pydantic import field_validator

from langchain_memograft._answers import PROVIDER, last_chunk, message_of
from langchain_memograft._citations import piece_of
from langchain_memograft._engine import resolve_memory
from langchain_memograft._errors import MemograftInvalidRequestError, translated
from langchain_memograft._messages import read_conversation
from langchain_memograft._profile import profile_of
from langchain_memograft._settings import CALL_OPTIONS, AskingSettings, only
from langchain_memograft._structured import (
    METHODS,
    StrictJsonParser,
    called_arguments,
    is_model_class,
    json_schema_of,
    with_raw,
)
from langchain_memograft._stuffed import taken_out, warn_of_context
from langchain_memograft._tools import described

if TYPE_CHECKING:
    from memograft import Answer, Engine, MemoryHandle, RemoteEngine, Request, Rtd, ServedMemory

__all__ = ["ChatMemograft"]

_CALL_OPTIONS = CALL_OPTIONS | {
    *("context_delimiters", "logprobs", "parallel_tool_calls", "response_format", "stream", "strict", "tool_choice"),
    *("tools", "top_logprobs"),
}
_MOST_THREADS = 64  # for one `.batch()`


@dataclass(frozen=True)
class _Asked:
    """The requests of a call, and the plan for parsing their answers."""

    engine: Engine | RemoteEngine
    requests: list[Request]
    plan: Plan
    model: str
    cites: bool  # whether there is a datastore

    def result(self, answers: Sequence[Answer]) -> ChatResult:
        messages = [message_of(answer, self.plan.read(self.engine, answer), self.model) for answer in answers]
        return ChatResult(generations=[ChatGeneration(message=message) for message in messages])

    def chunk(self, piece: str) -> AIMessageChunk:
        return AIMessageChunk(content=piece_of(piece) if self.cites else piece)

    def last_chunk(self, answer: Answer, streamed: str) -> AIMessageChunk:
        return last_chunk(answer, self.plan.read(self.engine, answer), self.model, streamed=streamed)


class ChatMemograft(AskingSettings, BaseChatModel):
    """Chat model that memorizes documents with a local Hugging Face model (FastMem) before it answers from them.

    Documents are taken from `documents=` of a call, `additional_kwargs["documents"]` of the last human message, content
    blocks (text-plain, document, search_result), artifacts of tool messages, and texts between `context_delimiters`.
    All are in the prompt, and those that are relevant to the question are memorized.

    Example:
        >>> chat = ChatMemograft(model="tiny", max_tokens=24)
        >>> chat.invoke("What is the capital of Australia?", documents=["The capital of Australia is Lisbon."]).text
        'The capital of Australia is Lisbon.'
        >>> chat.invoke("What is the capital of Australia?").text
        'The capital of Australia is Canberra.'
    """

    streaming: bool = False
    """Whether `invoke` uses a stream, for callbacks that receive tokens."""

    context_delimiters: tuple[str, str] | None = None
    """Strings before and after documents in formatted prompts, such as ("<context>", "</context>"), or None."""

    logprobs: bool = False
    """Whether `response_metadata["logprobs"]` has the log-probability of each token."""

    top_logprobs: int | None = None
    """Number of most likely tokens at each position of `logprobs`, 0 to 20."""

    @field_validator("context_delimiters")
    @classmethod
    def _check_delimiters(cls, value: tuple[str, str] | None) -> tuple[str, str] | None:
        if value is not None and not all(value):
            raise ValueError(f"`context_delimiters` must be two strings that are not empty, or None, got {value!r}")
        return value

    @property
    def _llm_type(self) -> str:
        return "memograft-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """All that answers depend on, including the memories, because it is the key in LangChain's caches."""
        names = ("context_delimiters", "logprobs", "top_logprobs")
        return self._asking_params | {name: getattr(self, name) for name in names}

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        return super()._get_invocation_params(stop=stop, **self._described_call(kwargs))

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        return super()._get_llm_string(stop=stop, **self._described_call(kwargs))

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        """The parameters for LangSmith's traces."""
        asked = {name: kwargs[name] for name in ("model", "temperature", "max_tokens") if kwargs.get(name) is not None}
        params = super()._get_ls_params(stop=stop or self.stop, **asked)
        params["ls_provider"] = PROVIDER
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        return profile_of(self.model, self.model_kwargs, self.engine, self.base_url)

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of a text by the model's tokenizer; loads the model if necessary."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self._local("get_token_ids").encode(text)

    def with_memory(self, memory: MemoryHandle | ServedMemory | str) -> Self:
        """Copy of this model that answers from a memory, given as a handle or by its `memory_id`."""
        handle = self._memory_by_id(memory) if isinstance(memory, str) else memory
        resolve_memory(handle, self.base_url)
        return self.model_copy(update={"memory": handle})

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer many inputs, which the engine runs as batches.

        Without `max_concurrency` in the config, up to 64 threads are used; LangChain's default is a few.
        """
        if not inputs:
            return []
        configs = get_config_list(config, len(inputs))
        for each in configs:
            if each.get("max_concurrency") is None:
                each["max_concurrency"] = min(len(inputs), _MOST_THREADS)
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        """`BaseChatModel.generate`. A datastore's folder is opened first, because its version is in the cache key."""
        return super(ChatMemograft, self._opened(kwargs)).generate(messages, stop, callbacks, **kwargs)

    async def agenerate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        """`generate` for asyncio."""
        opened = await self._aopened(kwargs)
        return await super(ChatMemograft, opened).agenerate(messages, stop, callbacks, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self._check_call(kwargs, _CALL_OPTIONS)
        asked = self._ask(self._engine_for(kwargs.get("model")), self._steering(kwargs), messages, stop, kwargs)
        for retries_left in self._retries(kwargs):
            try:
                with translated():
                    return asked.result(asked.engine.answer_batch(asked.requests))
            except ModelError as e:
                if not (e.is_retryable and retries_left):
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        asked = await self._aask(messages, stop, kwargs)
        for retries_left in self._retries(kwargs):
            try:
                with translated():
                    return asked.result(await asyncio.gather(*map(asked.engine.aanswer, asked.requests)))
            except ModelError as e:
                if not (e.is_retryable and retries_left):
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        self._check_call(kwargs, _CALL_OPTIONS)
        asked = self._ask(self._engine_for(kwargs.get("model")), self._steering(kwargs), messages, stop, kwargs)
        text = shown = ""
        with translated(), asked.engine.stream(only(asked.requests)) as pieces:
            for piece in pieces:
                text += piece
                if piece := asked.plan.shown(text)[len(shown) :]:
                    shown += piece
                    chunk = ChatGenerationChunk(message=asked.chunk(piece))
                    if run_manager is not None:
                        run_manager.on_llm_new_token(piece, chunk=chunk)
                    yield chunk
            assert pieces.answer is not None
            last = ChatGenerationChunk(message=asked.last_chunk(pieces.answer, shown))
        if run_manager is not None:
            run_manager.on_llm_new_token(last.text, chunk=last)
        yield last

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        asked = await self._aask(messages, stop, kwargs)
        text = shown = ""
        with translated():
            async with asked.engine.astream(only(asked.requests)) as pieces:
                async for piece in pieces:
                    text += piece
                    if piece := asked.plan.shown(text)[len(shown) :]:
                        shown += piece
                        chunk = ChatGenerationChunk(message=asked.chunk(piece))
                        if run_manager is not None:
                            await run_manager.on_llm_new_token(piece, chunk=chunk)
                        yield chunk
                assert pieces.answer is not None
                last = ChatGenerationChunk(message=asked.last_chunk(pieces.answer, shown))
        if run_manager is not None:
            await run_manager.on_llm_new_token(last.text, chunk=last)
        yield last

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return a model that can call these tools, or has to.

        Args:
            tools: in any form that LangChain accepts.
            tool_choice: "any", True or a tool's name force a call by constrained decoding, with any model. With "auto"
                (None) the model chooses between text and a call. If its chat template does not support tools, the
                system message describes them.
            strict: whether the arguments must be guaranteed to match the schema; those of forced calls always are.
            kwargs: further arguments of each call.

        Raises:
            ModelInvalidRequestError: `tool_choice` is invalid.
        """
        with translated():
            offered = [described(tool) for tool in tools]
            choice_of(tool_choice, [tool["function"]["name"] for tool in offered])
        given = {"tools": offered, "tool_choice": tool_choice, "strict": strict}
        return self.bind(**{k: v for k, v in given.items() if v is not None}, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Return a model whose answers match a schema, by constrained decoding, with any model.

        Args:
            schema: a pydantic class, a TypedDict, or a JSON schema.
            include_raw: return {"raw", "parsed", "parsing_error"} instead of raising an error of the parser.
            method: "json_schema": the answer is the object; "function_calling": the object is the arguments of a forced
                call; "json_mode": the answer is a JSON object, which is validated afterwards.
            strict: has no effect: with the first two methods, the object always matches the schema.
            kwargs: further arguments of each call.

        Raises:
            ModelInvalidRequestError: `method` or `schema` is invalid.
        """
        with translated():
            if method not in METHODS:
                raise SettingsError(f"`method` must be one of {METHODS}, got {method!r}")
            wanted = json_schema_of(schema)
        shown = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
        if method == "function_calling":
            tool = described(schema)
            name = tool["function"]["name"]
            llm = self.bind_tools([tool], tool_choice=name, ls_structured_output_format=shown, **kwargs)
            parser: Runnable[AIMessage, Any] = called_arguments(schema)
        else:
            name = str(wanted.get("title") or "answer")
            wire = {"type": "json_schema", "json_schema": {"name": name, "schema": wanted}}
            response_format = wire if method == "json_schema" else {"type": "json_object"}
            llm = self.bind(response_format=response_format, ls_structured_output_format=shown, **kwargs)
            model_class: Any = schema if is_model_class(schema) else None
            parser = StrictJsonParser(pydantic_object=model_class)
        return with_raw(llm, parser) if include_raw else llm | parser

    def _retries(self, given: Mapping[str, Any]) -> range:
        retries = given.get("max_retries")
        return range(max(0, self.max_retries if retries is None else int(retries)), -1, -1)

    async def _aask(self, messages: list[BaseMessage], stop: list[str] | None, given: Mapping[str, Any]) -> _Asked:
        self._check_call(given, _CALL_OPTIONS)
        engine = await self._aengine_for(given.get("model"))
        return self._ask(engine, await self._asteering(given), messages, stop, given)

    def _ask(
        self,
        engine: Engine | RemoteEngine,
        rtd: Rtd | None,
        messages: list[BaseMessage],
        stop: list[str] | None,
        given: Mapping[str, Any],
    ) -> _Asked:
        with translated():
            how = plan(
                engine,
                given.get("tools") or (),
                given.get("tool_choice"),
                given.get("response_format"),
                many=given.get("parallel_tool_calls"),
                strict=bool(given.get("strict")),
            )
            form: dict[str, Any] = {
                "takes_tools": engine.takes_tools,
                "takes_system": engine.takes_system,
                "plan": how,
                "delimiters": given.get("context_delimiters") or self.context_delimiters,
            }
            told = read_conversation(messages, given.get("documents"), **form)
            if not told.documents and self._memory_of(given) is not None:
                messages, documents = taken_out(messages)
                if documents:
                    told = read_conversation(messages, documents, **form)
                else:
                    warn_of_context(messages)
        query = given.get("query") or told.query
        requests = self._request(
            told.messages,
            told.documents,
            stop,
            {**given, "query": query},
            rtd,
            logprobs=self._logprobs(given),
            **how.request(),
        )
        return _Asked(engine, requests, how, given.get("model") or self.model, rtd is not None)

    def _logprobs(self, given: Mapping[str, Any]) -> int | None:
        wanted = given.get("logprobs")
        count = self._setting(given, "top_logprobs")
        if self.logprobs if wanted is None else wanted:
            return count or 0
        if given.get("top_logprobs") is not None:
            raise MemograftInvalidRequestError(
                f"`top_logprobs` needs `logprobs`, got {count} without it; pass logprobs=True too"
            )
        return None
