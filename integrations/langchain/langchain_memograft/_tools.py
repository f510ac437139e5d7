"""Convert LangChain's tools to descriptions in OpenAI's form, and the tool calls of an answer to LangChain's."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import InvalidToolCall, ToolCall
from langchain_core.messages.tool import invalid_tool_call, tool_call
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from memograft.chat import Reading

from langchain_memograft._errors import in_langchain_words
from langchain_memograft._structured import is_model_class, json_schema_of

__all__ = ["calls_of", "described", "invalid_calls_of"]


def described(tool: Any) -> dict[str, Any]:
    """Return the description of a tool in OpenAI's form; the tool may be in any form that LangChain accepts."""
    result = convert_to_openai_tool(tool)
    arguments = tool.tool_call_schema if isinstance(tool, BaseTool) else tool
    if is_model_class(arguments):
        schema = json_schema_of(arguments)
        if "$defs" in schema or "definitions" in schema:  # LangChain inlines definitions and loses recursive ones
            result["function"]["parameters"] = {k: v for k, v in schema.items() if k not in ("title", "description")}
    return result


def calls_of(reading: Reading) -> list[ToolCall]:
    """Return the tool calls of an answer."""
    return [tool_call(name=call.name, args=call.arguments, id=call.id) for call in reading.calls]


def invalid_calls_of(reading: Reading) -> list[InvalidToolCall]:
    """Return the tool calls of an answer that cannot be executed, each with the reason."""
    return [
        invalid_tool_call(name=call.name, args=call.text, id=call.id, error=in_langchain_words(call.error))
        for call in reading.invalid
    ]
