"""Schemas and parsers for `with_structured_output`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import JsonOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableLambda, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass
from memograft.errors import SettingsError

__all__ = ["METHODS", "StrictJsonParser", "called_arguments", "is_model_class", "json_schema_of", "with_raw"]

METHODS = ("json_schema", "function_calling", "json_mode")


def json_schema_of(schema: Any) -> dict[str, Any]:
    """The JSON schema of a pydantic class, a TypedDict, a JSON schema or an OpenAI function.

    Raises:
        SettingsError: `schema` is none of these.
    """
    if is_model_class(schema):
        return dict(schema.model_json_schema() if hasattr(schema, "model_json_schema") else schema.schema())
    if isinstance(schema, Mapping) and ("properties" in schema or "$ref" in schema or "anyOf" in schema):
        return dict(schema)
    try:
        return dict(convert_to_json_schema(schema))
    except (ValueError, TypeError, KeyError) as e:
        raise SettingsError(
            f"`schema` must be a pydantic class, a TypedDict or a JSON schema, got {type(schema).__name__}: {e}"
        ) from e


class StrictJsonParser(JsonOutputParser):
    """Parses JSON to a dictionary or an object of `pydantic_object`; in streams, to partial objects.

    JSON that was cut off is an error; LangChain's parser would complete it.
    """

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Parse the first generation.

        Raises:
            OutputParserException: the text is not JSON, or does not match the schema.
        """
        if partial:
            with suppress(ValueError):  # the text is unfinished
                return _validated(self.pydantic_object, super().parse_result(result, partial=True))
            return None
        text = result[0].text
        try:
            value = json.loads(text)
        except ValueError as e:
            raise OutputParserException(
                f"the answer is not whole JSON ({_finish_reason(result)}): {e}; got {text!r}; allow more `max_tokens`",
                llm_output=text,
            ) from e
        try:
            return _validated(self.pydantic_object, value)
        except ValueError as e:
            raise OutputParserException(
                f"the answer does not match the schema: {e}; got {text!r}", llm_output=text
            ) from e

    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:
        pieces: list[str] = []

        def kept() -> Iterator[str | BaseMessage]:
            for piece in input:
                pieces.append(_text(piece))
                yield piece

        yield from super()._transform(kept())
        self.parse_result([Generation(text="".join(pieces))])  # raises if the answer was cut off

    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:
        pieces: list[str] = []

        async def kept() -> AsyncIterator[str | BaseMessage]:
            async for piece in input:
                pieces.append(_text(piece))
                yield piece

        async for value in super()._atransform(kept()):
            yield value
        self.parse_result([Generation(text="".join(pieces))])


def called_arguments(schema: Any) -> Runnable[AIMessage, Any]:
    """A Runnable that returns the arguments of a message's first call, for a pydantic class as its object."""

    def read(message: AIMessage) -> Any:
        if not message.tool_calls:
            wrong = message.invalid_tool_calls[0]["error"] if message.invalid_tool_calls else "it is text"
            wrong = wrong or "the call is not whole; allow more `max_tokens`"  # LangChain's streams drop the reason
            raise OutputParserException(f"the answer has no tool call: {wrong}", llm_output=message.text)
        arguments = message.tool_calls[0]["args"]
        try:
            return _validated(schema if is_model_class(schema) else None, arguments)
        except ValueError as e:
            raise OutputParserException(
                f"the call does not match the schema: {e}", llm_output=json.dumps(arguments)
            ) from e

    return RunnableLambda(read)


def with_raw(llm: Runnable[Any, AIMessage], parser: Runnable[AIMessage, Any]) -> Runnable[Any, Any]:
    """A Runnable that returns {"raw", "parsed", "parsing_error"}."""
    good = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    bad = RunnablePassthrough.assign(parsed=lambda _: None)
    # The model is first because a sequence passes the arguments of a call, such as `documents=`, to its first step.
    return llm | RunnableMap(raw=RunnablePassthrough()) | good.with_fallbacks([bad], exception_key="parsing_error")


def is_model_class(schema: Any) -> bool:
    """Whether it is a pydantic class, of version 1 or 2."""
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def _validated(model: Any, value: Any) -> Any:
    if model is None or value is None:
        return value
    return model.model_validate(value) if hasattr(model, "model_validate") else model.parse_obj(value)


def _text(piece: str | BaseMessage) -> str:
    return piece if isinstance(piece, str) else str(piece.text)


def _finish_reason(result: list[Generation]) -> str:
    generation = result[0]
    message = generation.message if isinstance(generation, ChatGeneration) else None
    return f"finish_reason={message.response_metadata.get('finish_reason')!r}" if message is not None else "cut off"
