"""Convert ReActAgent's prompt to messages and tools in OpenAI's form, and an answer to ReAct's text.

A ReActAgent describes its tools in a long system message, writes calls and results as text ("Thought: ... Action: ...
Action Input: ...", "Observation: ..."), and parses the next call from the text of the answer. Small models do not
follow that format. So for a model whose chat template does not support tools, the prompt is parsed here, the request is
made as for other tool calls (a short instruction, examples, constrained decoding), and the call is written in ReAct's
format.

Only LlamaIndex's default system headers are parsed. A prompt with another header is not changed.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

from memograft.chat import Reading, fields_of

__all__ = ["read", "written"]

_NEEDS_A_TOOL = "(Implicit) I need to use a tool."  # ReAct's parser refuses a call without a thought
_NEEDS_NONE = "(Implicit) I can answer without any more tools!"  # the parser's thought for an answer without one
_STEP = re.compile(r"Thought: (.*?)\nAction: (\S+)\nAction Input: (\{.*\})", re.DOTALL)
_FINAL = re.compile(r"(?:^|\n)Thought: .*?\nAnswer: (.*)\Z", re.DOTALL)
_OBSERVED = "Observation: "
_KEYWORDS = re.compile(r"Thought:|Action:|Answer:")  # the parser searches the whole answer for them


def read(messages: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
    """The conversation of a ReActAgent and its tools; None if the messages are not a ReActAgent's."""
    first = messages[0] if messages else {}
    header = first.get("content")
    if first.get("role") != "system" or not isinstance(header, str):
        return None
    fields = next((found for wording in _headers() if (found := fields_of(header, wording))), None)
    tools = _tools(fields) if fields is not None else None
    if fields is None or tools is None:
        return None
    conversation: list[dict[str, Any]] = []
    if context := fields.get("context"):
        conversation.append({"role": "system", "content": context})
    called = ""
    for number, message in enumerate(messages[1:]):
        text = message.get("content")
        if called and isinstance(text, str) and text.startswith(_OBSERVED):
            conversation.append({"role": "tool", "content": text.removeprefix(_OBSERVED), "tool_call_id": called})
            continue
        called = ""
        if message.get("role") == "assistant" and isinstance(text, str):
            if call := _call(text, f"react_{number}"):
                called = f"react_{number}"
                message = call
            elif final := _FINAL.search(text):
                message = {**message, "content": final[1]}
        conversation.append(message)
    return conversation, tools


def written(reading: Reading) -> Reading:
    """An answer in the format of ReAct's output parser: a call is written as text, other text is not changed."""
    if reading.calls:
        call = reading.calls[0]
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        return Reading(f"Thought: {_NEEDS_A_TOOL}\nAction: {call.name}\nAction Input: {arguments}")
    if _KEYWORDS.search(reading.content):  # the parser would take these words for keywords
        return Reading(f"Thought: {_NEEDS_NONE}\nAnswer: {reading.content}", (), reading.invalid)
    return reading


def _call(text: str, id: str) -> dict[str, Any] | None:
    """The message of a step that calls a tool, whose arguments are a Python literal; None for other text."""
    step = _STEP.fullmatch(text)
    if step is None:
        return None
    try:
        arguments = ast.literal_eval(step[3])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(arguments, dict):
        return None
    thought = step[1] if step[1] != _NEEDS_A_TOOL else ""
    function = {"name": step[2], "arguments": arguments}
    return {
        "role": "assistant",
        "content": thought,
        "tool_calls": [{"id": id, "type": "function", "function": function}],
    }


def _tools(fields: dict[str, str]) -> list[dict[str, Any]] | None:
    """The tools in a header; None if the described tools differ from the listed names."""
    tools: list[dict[str, Any]] = []
    for found in _description().finditer(fields["tool_desc"] + "\n"):
        try:
            parameters = json.loads(found["parameters"])
        except ValueError:
            return None
        function = {"name": found["name"], "description": found["description"], "parameters": parameters}
        tools.append({"type": "function", "function": function})
    names = [tool["function"]["name"] for tool in tools]
    return tools if names and ", ".join(names) == fields["tool_names"] else None


@cache
def _headers() -> tuple[str, ...]:
    """LlamaIndex's default headers, the one with a context first; read from LlamaIndex to match its version."""
    from llama_index.core.agent.react.prompts import CONTEXT_REACT_CHAT_SYSTEM_HEADER, REACT_CHAT_SYSTEM_HEADER

    headers = (CONTEXT_REACT_CHAT_SYSTEM_HEADER, REACT_CHAT_SYSTEM_HEADER)
    return tuple(header.replace("{{", "{").replace("}}", "}") for header in headers)


@cache
def _description() -> re.Pattern[str]:
    """A pattern for LlamaIndex's description of a tool, with a group for each part."""
    from llama_index.core.agent.react.formatter import get_react_tool_descriptions

    parts: Any = SimpleNamespace(name="{name}", description="{description}", fn_schema_str="{parameters}")
    tool: Any = SimpleNamespace(metadata=parts)
    (wording,) = get_react_tool_descriptions([tool])
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.*?)", re.escape(wording)), re.DOTALL)
