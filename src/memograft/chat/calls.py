"""Tool calls as plain data, and how to parse them from an answer's text or from a message in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import uuid4

from memograft.errors import SettingsError

__all__ = ["FORCE", "Call", "InvalidCall", "Reading", "arguments_of", "calls_in", "new_id", "parsed"]

FORCE = "force a call with `tool_choice`, which constrains it"


def new_id() -> str:
    """A new id for a call: "call_" and 24 hex digits."""
    return f"call_{uuid4().hex[:24]}"


@dataclass(frozen=True)
class Call:
    """A call of a tool.

    Attributes:
        name: name of the tool.
        arguments: its arguments.
        id: the id that its result refers to.
    """

    name: str
    arguments: dict[str, object] = field(default_factory=dict)
    id: str = field(default_factory=new_id)

    def to_openai(self) -> dict[str, object]:
        """The call as an item of a message's `tool_calls`."""
        arguments = json.dumps(self.arguments, ensure_ascii=False)
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}


@dataclass(frozen=True)
class InvalidCall:
    """A call that cannot be executed.

    Attributes:
        name: name of the tool, if known.
        text: what the model wrote: the whole answer, or the arguments.
        error: what is wrong with it, and a remedy.
        id: an id for it.
    """

    name: str | None
    text: str
    error: str
    id: str = field(default_factory=new_id)


@dataclass(frozen=True)
class Reading:
    """A parsed answer.

    Attributes:
        content: its text; "" beside calls.
        calls: its tool calls.
        invalid: calls that cannot be executed.
        reasoning: what the model wrote before its answer, if its tokenizer separates that.
    """

    content: str
    calls: tuple[Call, ...] = ()
    invalid: tuple[InvalidCall, ...] = ()
    reasoning: str = ""

    def rest(self, shown: str) -> str:
        """The part of `content` that has to be streamed after `shown`."""
        return self.content[len(shown) :] if self.content.startswith(shown) else ""


def calls_in(text: str, names: Container[str]) -> tuple[Call, ...]:
    """The calls in a text that is JSON of one call or of a list of calls; () for any other text."""
    try:
        found = json.loads(text)
    except ValueError:
        return ()
    items = found if isinstance(found, list) else [found]
    calls = []
    for item in items:
        if not isinstance(item, dict) or item.keys() != {"name", "arguments"} or item["name"] not in names:
            return ()
        if not isinstance(item["arguments"], dict):
            return ()
        calls.append(Call(item["name"], item["arguments"]))
    return tuple(calls)


def parsed(message: Mapping[str, object], text: str) -> Reading:
    """Read a message that a tokenizer parsed from an answer; `text` is the whole answer."""
    calls: list[Call] = []
    invalid: list[InvalidCall] = []
    items = message.get("tool_calls") or ()
    for item in items if isinstance(items, list | tuple) else [items]:
        function = item.get("function", item) if isinstance(item, Mapping) else {}
        name, arguments = (function.get(k) for k in ("name", "arguments")) if isinstance(function, Mapping) else (0, 0)
        if isinstance(arguments, str):
            with suppress(ValueError):
                arguments = json.loads(arguments)
        if isinstance(name, str) and name and isinstance(arguments, Mapping):
            calls.append(Call(name, dict(arguments)))
        else:
            error = f"the model wrote a call without a name, or with arguments that are not a JSON object; {FORCE}"
            args = arguments if isinstance(arguments, str) else json.dumps(arguments, default=str)
            invalid.append(InvalidCall(name if isinstance(name, str) and name else None, args, error))
    content = message.get("content")
    if not isinstance(content, str):
        content = "" if calls or invalid else text
    reasoning = message.get("thinking") or message.get("reasoning_content") or message.get("reasoning") or ""
    return Reading(content, tuple(calls), tuple(invalid), str(reasoning))


def arguments_of(name: object, given: object) -> dict[str, object]:
    """The arguments of a call in a message: a mapping, JSON of one, or nothing.

    Raises:
        SettingsError: they are something else.
    """
    read: object = given
    if isinstance(given, str):
        try:
            read = json.loads(given or "{}")
        except ValueError:
            read = given
    if read is None:
        return {}
    if not isinstance(read, Mapping):
        raise SettingsError(
            f"the call of {name!r} must have a JSON object as arguments, got {given!r:.200}; pass a mapping"
        )
    return dict(read)
