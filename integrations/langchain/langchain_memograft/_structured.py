"""`with_structured_output`: which schema an answer keeps to, and the parser that makes an object of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableLambda, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from memograft.errors import SettingsError
from pydantic import BaseModel, ValidationError

__all__ = ["METHODS", "StrictJsonParser", "called_arguments", "json_schema_of", "with_raw"]

METHODS = ("json_schema", "function_calling", "json_mode")


def json_schema_of(schema: Any) -> dict[str, Any]:
    """The JSON schema of a pydantic class, a TypedDict, or a JSON schema with a title (or an OpenAI function).

    Raises:
        SettingsError: it is none of them.
    """
    if _is_model(schema):
        return dict(schema.model_json_schema())
    if isinstance(schema, Mapping) and ("properties" in schema or "$ref" in schema or "anyOf" in schema):
        return dict(schema)
    try:
        return dict(convert_to_json_schema(schema))
    except (ValueError, TypeError, KeyError) as e:
        raise SettingsError(
            f"`schema` must be a pydantic class, a TypedDict or a JSON schema, got {type(schema).__name__}: {e}"
        ) from e


class StrictJsonParser(JsonOutputParser):
    """JSON -> dict, or an object of `pydantic_object`; while it streams, what there is so far.

    An answer that was cut off is an error, where LangChain's own parser would close its brackets and go on.
    """

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Parse the first generation.

        Raises:
            OutputParserException: it is not JSON, or not of the schema.
        """
        if partial:
            with suppress(ValidationError):  # more is to come
                return self._validated(super().parse_result(result, partial=True))
            return None
        text = result[0].text
        try:
            value = json.loads(text)
            return self._validated(value)
        except ValidationError as e:
            raise OutputParserException(f"the answer is not of the schema: {e}; got {text!r}", llm_output=text) from e
        except ValueError as e:
            raise OutputParserException(
                f"the answer is not whole JSON ({_finish_reason(result)}): {e}; got {text!r}; allow more `max_tokens`",
                llm_output=text,
            ) from e

    def _validated(self, value: Any) -> Any:
        model: Any = self.pydantic_object
        return value if model is None else model.model_validate(value)


def called_arguments(schema: Any) -> Runnable[AIMessage, Any]:
    """Message -> the arguments of its first call, as an object of `schema` if that is a pydantic class."""

    def read(message: AIMessage) -> Any:
        if not message.tool_calls:
            wrong = message.invalid_tool_calls[0]["error"] if message.invalid_tool_calls else "it called nothing"
            raise OutputParserException(f"the answer holds no call: {wrong}", llm_output=message.text)
        arguments = message.tool_calls[0]["args"]
        if not _is_model(schema):
            return arguments
        try:
            return schema.model_validate(arguments)
        except ValidationError as e:
            raise OutputParserException(f"the call is not of the schema: {e}", llm_output=json.dumps(arguments)) from e

    return RunnableLambda(read)


def with_raw(llm: Runnable[Any, AIMessage], parser: Runnable[AIMessage, Any]) -> Runnable[Any, Any]:
    """Input -> {"raw", "parsed", "parsing_error"}."""
    good = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    bad = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=llm) | good.with_fallbacks([bad], exception_key="parsing_error")


def _is_model(schema: Any) -> bool:
    return isinstance(schema, type) and issubclass(schema, BaseModel)


def _finish_reason(result: list[Generation]) -> str:
    generation = result[0]
    message = generation.message if isinstance(generation, ChatGeneration) else None
    return f"finish_reason={message.response_metadata.get('finish_reason')!r}" if message is not None else "cut off"
