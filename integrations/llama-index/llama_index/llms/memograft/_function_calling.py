"""`FunctionCalling`: the methods of the LLM for tool calls and structured output, which use the chat endpoints."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole, ToolCallBlock
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictInProgressEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.prompts import BasePromptTemplate
from llama_index.llms.memograft._errors import ToolCallError, loud
from llama_index.llms.memograft._responses import refuse_invalid
from llama_index.llms.memograft._structured import MemograftStructuredLLM, Partial, object_of, schema_of, with_schema
from llama_index_instrumentation import get_dispatcher
from memograft.chat import arguments_of

__all__ = ["FunctionCalling"]

dispatcher = get_dispatcher(__name__)


class FunctionCalling(FunctionCallingLLM):
    """Base class of an LLM whose `chat` takes `tools`, `tool_choice`, `tool_required` and `json_schema`."""

    async def _loaded(self) -> None:
        """Load the model in a thread, because rendering a prompt reads `metadata`, which would load it."""

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[Any],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The arguments of `chat`."""
        messages = list(chat_history or [])
        if user_msg is not None:
            if isinstance(user_msg, str):
                user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
            messages.append(user_msg)
        given = {"tools": list(tools or ()), "tool_required": tool_required}
        return {"messages": messages, **given, "allow_parallel_tool_calls": allow_parallel_tool_calls, **kwargs}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The tool calls of a response.

        Raises:
            ToolCallError: there are none, or one cannot be executed. The latter is raised for any
                `error_on_no_tool_call`, because an agent would take the message for its final answer.
        """
        refuse_invalid(response)
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not calls and error_on_no_tool_call:
            raise ToolCallError(
                f"the answer must call a tool, got {response.message.content!r}; pass tool_required=True, or "
                "error_on_no_tool_call=False"
            )
        return [
            ToolSelection(
                tool_id=call.tool_call_id or "",
                tool_name=call.tool_name,
                tool_kwargs=arguments_of(call.tool_name, call.tool_kwargs),
            )
            for call in calls
        ]

    def as_structured_llm(self, output_cls: type[BaseModel], **kwargs: Any) -> MemograftStructuredLLM:
        """An LLM whose answers are JSON of the pydantic class."""
        schema_of(output_cls)
        return MemograftStructuredLLM(llm=self, output_cls=output_cls, **kwargs)

    @dispatcher.span
    def structured_predict(
        self,
        output_cls: type[Any],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """Answer a prompt with an object of a pydantic class, by constrained decoding."""
        _started(output_cls, prompt, prompt_args)
        with loud():
            messages, options = self._structured(output_cls, prompt, llm_kwargs, prompt_args)
            output = object_of(output_cls, self.chat(messages, **options))
        dispatcher.event(LLMStructuredPredictEndEvent(output=output))
        return output

    @dispatcher.span
    async def astructured_predict(
        self,
        output_cls: type[Any],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """`structured_predict` without blocking."""
        _started(output_cls, prompt, prompt_args)
        with loud():
            await self._loaded()
            messages, options = self._structured(output_cls, prompt, llm_kwargs, prompt_args)
            output = object_of(output_cls, await self.achat(messages, **options))
        dispatcher.event(LLMStructuredPredictEndEvent(output=output))
        return output

    @dispatcher.span
    def stream_structured_predict(
        self,
        output_cls: type[Any],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        """A stream of partial objects, whose fields are all optional; the last object is complete and valid."""
        _started(output_cls, prompt, prompt_args)
        messages, options = self._structured(output_cls, prompt, llm_kwargs, prompt_args)
        partial, response = Partial(output_cls), None
        for response in self.stream_chat(messages, **options):
            if response.raw is None and (growing := partial(response.message.content or "")) is not None:
                dispatcher.event(LLMStructuredPredictInProgressEvent(output=growing))
                yield growing
        assert response is not None
        output = object_of(output_cls, response)
        yield output
        dispatcher.event(LLMStructuredPredictEndEvent(output=output))

    @dispatcher.span
    async def astream_structured_predict(
        self,
        output_cls: type[Any],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        """`stream_structured_predict` without blocking."""

        async def grow() -> AsyncGenerator[Any, None]:
            _started(output_cls, prompt, prompt_args)
            await self._loaded()
            messages, options = self._structured(output_cls, prompt, llm_kwargs, prompt_args)
            partial, response = Partial(output_cls), None
            async for response in await self.astream_chat(messages, **options):
                if response.raw is None and (growing := partial(response.message.content or "")) is not None:
                    dispatcher.event(LLMStructuredPredictInProgressEvent(output=growing))
                    yield growing
            assert response is not None
            output = object_of(output_cls, response)
            yield output
            dispatcher.event(LLMStructuredPredictEndEvent(output=output))

        return grow()

    def _structured(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> tuple[list[ChatMessage], dict[str, Any]]:
        """(messages, arguments) of `chat`."""
        schema = schema_of(output_cls)
        messages = with_schema(self._get_messages(prompt, **prompt_args), schema)
        return messages, {**(llm_kwargs or {}), "json_schema": schema}


def _started(output_cls: type[Any], prompt: BasePromptTemplate, prompt_args: dict[str, Any]) -> None:
    dispatcher.event(LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args))
