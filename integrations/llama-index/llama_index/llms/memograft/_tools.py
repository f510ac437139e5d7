"""Tools: their descriptions for the chat template, and a JSON schema that forces a call of one of them.

Knows nothing of engines. A call is `{"name": ..., "arguments": {...}}`, in the order in which models write it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.llms.memograft._schemas import shown
from memograft.errors import SettingsError

__all__ = ["arguments", "blocks", "call_schema", "chosen", "instruction", "specs"]

_ANY = ("required", "any")


def specs(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Tools of LlamaIndex, or descriptions in OpenAI's form -> descriptions.

    Raises:
        SettingsError: something that is neither.
    """
    made = []
    for position, tool in enumerate(tools):
        if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping) and "name" in tool["function"]:
            made.append({"type": "function", **tool})
        elif hasattr(tool, "metadata") and hasattr(tool.metadata, "to_openai_tool"):
            made.append(tool.metadata.to_openai_tool(skip_length_check=True))
        else:
            raise SettingsError(
                f"tools[{position}] must be a tool of LlamaIndex or a description in OpenAI's form, got "
                f"{type(tool).__name__}; wrap a function as FunctionTool.from_defaults(fn)"
            )
    return made


def chosen(
    tools: Sequence[Mapping[str, Any]], tool_choice: Any, *, required: bool
) -> tuple[list[Mapping[str, Any]], bool]:
    """(the tools that may be called, whether one must be). `tool_choice` is None, "auto", "none", "required" or a name.

    Raises:
        SettingsError: a name that no tool has.
    """
    if isinstance(tool_choice, Mapping):
        tool_choice = tool_choice.get("function", {}).get("name")
    if tool_choice == "none":
        return [], False
    if tool_choice in (None, "auto", *_ANY):
        return list(tools), bool(tools) and (required or tool_choice in _ANY)
    named = [tool for tool in tools if tool["function"]["name"] == tool_choice]
    if not named:
        names = [tool["function"]["name"] for tool in tools]
        raise SettingsError(f'`tool_choice` must be "auto", "none", "required" or one of {names}, got {tool_choice!r}')
    return named, True


def call_schema(tools: Sequence[Mapping[str, Any]], *, many: bool) -> dict[str, Any]:
    """The JSON schema of a call of one of the tools, or of a list of calls."""
    shared: dict[str, Any] = {}
    calls = []
    for tool in tools:
        function = tool["function"]
        parameters = dict(function.get("parameters") or {"type": "object", "properties": {}})
        # References are read from the root of the whole schema, where another tool may use the same name.
        definitions = {**parameters.pop("$defs", {}), **parameters.pop("definitions", {})}
        names = {name: f"{function['name']}.{name}" for name in definitions}
        shared |= {names[name]: _renamed(value, names) for name, value in definitions.items()}
        call = {"name": {"const": function["name"]}, "arguments": _renamed(parameters, names)}
        calls.append({"type": "object", "properties": call, "required": [*call], "additionalProperties": False})
    one = calls[0] if len(calls) == 1 else {"anyOf": calls}
    schema = {"type": "array", "items": one, "minItems": 1} if many else one
    return {**schema, "$defs": shared} if shared else schema


def instruction(tools: Sequence[Mapping[str, Any]]) -> str:
    """What a model is told whose chat template has no place for tools."""
    described = "\n".join(shown(tool["function"]) for tool in tools)
    return f'Answer by calling a function, as JSON {{"name": ..., "arguments": {{...}}}}. The functions:\n{described}'


def blocks(calls: Any) -> list[ToolCallBlock]:
    """What was read from an answer (one call or a list; `function` around it or not) -> blocks of a message."""
    made = []
    for call in [calls] if isinstance(calls, Mapping) else calls:
        function = call.get("function", call)
        made.append(
            ToolCallBlock(
                tool_call_id=str(call.get("id") or f"call_{uuid.uuid4().hex[:12]}"),
                tool_name=function["name"],
                tool_kwargs=function.get("arguments") or {},
            )
        )
    return made


def arguments(call: ToolCallBlock) -> dict[str, Any]:
    """The arguments of a call, which may be JSON still.

    Raises:
        SettingsError: they are no object of JSON.
    """
    given = call.tool_kwargs
    try:
        read = json.loads(given or "{}") if isinstance(given, str) else given
    except ValueError:
        read = None
    if not isinstance(read, dict):
        raise SettingsError(
            f"the call of {call.tool_name!r} must have an object of JSON for arguments, got {given!r}; pass a dict as "
            "`tool_kwargs`"
        )
    return read


def _renamed(schema: Any, names: Mapping[str, str]) -> Any:
    """`schema` with its references to definitions renamed."""
    if isinstance(schema, Mapping):
        made = {key: _renamed(value, names) for key, value in schema.items()}
        target = str(made.get("$ref", ""))
        if target.startswith(("#/$defs/", "#/definitions/")) and (name := target.split("/", 2)[2]) in names:
            made["$ref"] = f"#/$defs/{names[name]}"
        return made
    return [_renamed(item, names) for item in schema] if isinstance(schema, list) else schema
