"""What tools and response formats ask of an answer, and what they make of it.

forced (tool_choice="any", True, a name)   the answer is JSON of {"name", "arguments"}, on any model
free (tool_choice="auto")                  the chat template shows the tools, the tokenizer parses the calls
response_format                            the answer is JSON of a schema; beside tools: that, or a call
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from langchain_core.messages import InvalidToolCall, ToolCall
from langchain_core.messages.tool import invalid_tool_call, tool_call
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from memograft.errors import SettingsError

from langchain_memograft._schema import closed, hoisted
from langchain_memograft._structured import is_model_class, json_schema_of

if TYPE_CHECKING:
    from memograft import Answer, Engine

__all__ = ["Plan", "Reading", "choice_of", "described", "plan"]


@dataclass(frozen=True)
class Reading:
    """What an answer says: text, calls, calls that cannot be made, and what the model thought before."""

    content: str
    tool_calls: list[ToolCall] = field(default_factory=list)
    invalid_tool_calls: list[InvalidToolCall] = field(default_factory=list)
    reasoning: str = ""


@dataclass(frozen=True)
class Plan:
    """How an answer is asked for, and how it is read.

    Attributes:
        tools: for the chat template.
        json_schema: that the answer keeps to.
        reads: "text", or what is to be looked for in it.
        names: of the tools.
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    json_schema: Mapping[str, Any] | None = None
    reads: Literal["text", "call", "call or text", "template"] = "text"
    names: tuple[str, ...] = ()

    @property
    def streams_text(self) -> bool:
        """Whether pieces of the answer can be shown before it is whole."""
        return self.reads == "text"

    def read(self, engine: Engine, answer: Answer) -> Reading:
        """Take an answer apart."""
        if self.reads == "text":
            return Reading(answer.text)
        if self.reads == "template":
            try:
                parsed = engine.parse_response(answer)
            except Exception as e:  # a response template is a program of unknown making
                return Reading("", [], [_invalid(None, answer.text, f"the answer cannot be taken apart: {e}")])
            return _parsed(parsed, answer.text)
        call = _forced_call(answer.text, self.names)
        if call is not None:
            return Reading("", [call])
        if self.reads == "call or text":
            return Reading(answer.text)
        error = f"the call is not whole (finish_reason={answer.finish_reason!r}); allow more `max_tokens`"
        name = self.names[0] if len(self.names) == 1 else None
        return Reading("", [], [_invalid(name, answer.text, error)])


def described(tool: Any) -> dict[str, Any]:
    """A tool in OpenAI's form, in whatever form LangChain has it."""
    result = convert_to_openai_tool(tool)
    arguments = tool.tool_call_schema if isinstance(tool, BaseTool) else tool
    if is_model_class(arguments):
        schema = json_schema_of(arguments)
        if "$defs" in schema or "definitions" in schema:  # LangChain writes them out, and empties those in a circle
            result["function"]["parameters"] = {k: v for k, v in schema.items() if k not in ("title", "description")}
    return result


def plan(engine: Engine, given: Mapping[str, Any]) -> Plan:
    """What a call's `tools`, `tool_choice` and `response_format` mean on this engine.

    Raises:
        SettingsError: the model cannot do it, or it contradicts itself.
    """
    tools: Sequence[Mapping[str, Any]] = given.get("tools") or ()
    answer_schema = _answer_schema(given.get("response_format"))
    names = tuple(str(tool["function"]["name"]) for tool in tools)
    choice = choice_of(given.get("tool_choice"), names)
    if not tools or choice == "none":
        return Plan(json_schema=answer_schema)
    shown = tuple(tools) if engine.takes_tools else ()
    if choice == "auto" and answer_schema is None:
        if not engine.takes_tools:
            raise SettingsError(
                'tool_choice="auto" leaves the choice to the model, and this one\'s chat template has no place for '
                'tools, or its tokenizer no `response_template`; force a call with tool_choice="any" or a tool\'s '
                "name, or use a model that calls tools"
            )
        if given.get("strict"):
            raise SettingsError(
                'strict=True promises arguments of the schema, which only a forced call keeps, got tool_choice="auto"; '
                'pass tool_choice="any" or a tool\'s name, or leave `strict` out'
            )
        return Plan(shown, None, "template", names)
    chosen = [tool for tool, name in zip(tools, names, strict=True) if choice in ("any", "auto", name)]
    extra = [answer_schema] if choice == "auto" and answer_schema is not None else []
    return Plan(shown, _any_of(chosen, extra), "call or text" if extra else "call", names)


def choice_of(tool_choice: Any, names: Sequence[str]) -> str:
    """`tool_choice` in any of its spellings -> "auto", "any", "none", or the name of one of the tools.

    Raises:
        SettingsError: it is none of them.
    """
    if isinstance(tool_choice, Mapping):
        function = tool_choice.get("function")
        tool_choice = function.get("name") if isinstance(function, Mapping) else tool_choice.get("name")
    if tool_choice is None or tool_choice == "auto":
        return "auto"
    if tool_choice is False or tool_choice == "none":
        return "none"
    if tool_choice is True or tool_choice in ("any", "required"):
        if not names:
            raise SettingsError(f"tool_choice={tool_choice!r} forces a call, and there are no tools; bind some")
        return "any"
    if isinstance(tool_choice, str) and tool_choice in names:
        return tool_choice
    raise SettingsError(
        f'`tool_choice` must be "auto", "any", "none", True, False or the name of a tool, got {tool_choice!r}, and the '
        f"tools are {list(names)}"
    )


def _any_of(tools: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The schema of a call of one of the tools, or of one of the other schemas."""
    definitions: dict[str, Any] = {}
    options: list[Any] = []
    for number, tool in enumerate(tools):
        function = tool["function"]
        arguments = function.get("parameters") or {"type": "object", "properties": {}}
        options.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": function["name"]},
                    "arguments": hoisted(closed(arguments), f"tool{number}_", definitions),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    options += [hoisted(other, f"answer{number}_", definitions) for number, other in enumerate(others)]
    schema = options[0] if len(options) == 1 else {"anyOf": options}
    return {**schema, "$defs": definitions} if definitions else schema


def _answer_schema(response_format: Any) -> Mapping[str, Any] | None:
    """The schema in a `response_format` of OpenAI's form.

    Raises:
        SettingsError: it is of another form.
    """
    if response_format is None:
        return None
    if isinstance(response_format, Mapping):
        kind, holder = response_format.get("type"), response_format.get("json_schema")
        if kind == "text":
            return None
        if kind == "json_object":
            return {"type": "object"}
        if kind == "json_schema" and isinstance(holder, Mapping) and isinstance(holder.get("schema"), Mapping):
            schema: Mapping[str, Any] = closed(holder["schema"])
            return schema
    raise SettingsError(
        '`response_format` must be {"type": "json_schema", "json_schema": {"schema": ...}}, {"type": "json_object"} or '
        f'{{"type": "text"}}, got {response_format!r:.200}; or use with_structured_output'
    )


def _forced_call(text: str, names: Sequence[str]) -> ToolCall | None:
    try:
        call = json.loads(text)
    except ValueError:
        return None
    if not isinstance(call, dict) or call.keys() != {"name", "arguments"} or call["name"] not in names:
        return None
    return tool_call(name=call["name"], args=call["arguments"], id=_new_id())


def _parsed(message: Mapping[str, Any], text: str) -> Reading:
    """A message that the tokenizer took apart."""
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for item in message.get("tool_calls") or ():
        function = item.get("function", item) if isinstance(item, Mapping) else {}
        name, arguments = function.get("name"), function.get("arguments")
        if isinstance(arguments, str):
            with suppress(ValueError):
                arguments = json.loads(arguments)
        if isinstance(name, str) and name and isinstance(arguments, Mapping):
            calls.append(tool_call(name=name, args=dict(arguments), id=_new_id()))
        else:
            error = "the model wrote a call without a name, or with arguments that are no JSON object"
            args = arguments if isinstance(arguments, str) else json.dumps(arguments, default=str)
            invalid.append(_invalid(name, args, error))
    content = message.get("content")
    if not isinstance(content, str):
        content = "" if calls or invalid else text
    return Reading(content, calls, invalid, str(message.get("thinking") or message.get("reasoning_content") or ""))


def _invalid(name: str | None, args: str, error: str) -> InvalidToolCall:
    return invalid_tool_call(name=name, args=args, id=_new_id(), error=error)


def _new_id() -> str:
    return f"call_{uuid4().hex[:24]}"
