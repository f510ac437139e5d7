"""Normalise tools, `tool_choice` and `response_format`, which callers write in several forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memograft.chat.schema import closed
from memograft.errors import SettingsError

__all__ = ["checked_tools", "choice_of", "schema_of_format"]


def checked_tools(tools: object) -> tuple[dict[str, object], ...]:
    """Tools as `{"type": "function", "function": {"name", "description", "parameters"}}`.

    The function may also be given alone, or with its fields beside `type`.

    Raises:
        SettingsError: a tool has another form, or two have the same name.
    """
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        raise SettingsError(f"`tools` must be a list of tools, got one {type(tools).__name__}; write tools=[...]")
    checked: list[dict[str, object]] = []
    names: list[str] = []
    for position, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
            raise SettingsError(
                f"tools[{position}] must be a description in OpenAI's form, got {tool!r:.200}; write "
                '{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'
            )
        if name in names:
            raise SettingsError(f"tools must have different names, got {name!r} twice; rename one")
        names.append(name)
        fields = {key: value for key, value in function.items() if key != "type"}
        about = dict(tool) if function is not tool else {}
        checked.append({"type": "function", **about, "function": fields})
    return tuple(checked)


def choice_of(tool_choice: object, names: Sequence[str]) -> str:
    """`tool_choice` in any form -> "auto", "any", "none", or the name of one of the tools.

    None is "auto", True and "required" are "any", False is "none". Of {"function": {"name": ...}}, {"name": ...} and
    {"type": "auto"}, the inner value is used.

    Raises:
        SettingsError: it is none of them.
    """
    given = tool_choice
    if isinstance(given, Mapping):
        function = given.get("function")
        named = function.get("name") if isinstance(function, Mapping) else given.get("name")
        given = given.get("type") if named is None and given.get("type") in ("auto", "any", "none") else named
        if given is None:  # a mapping without a name is not another form of "auto"
            given = tool_choice
    if given is None or given == "auto":
        return "auto"
    if given is False or given == "none":
        return "none"
    if given is True or given in ("any", "required"):
        if not names:
            raise SettingsError(f"tool_choice={tool_choice!r} forces a call, and there are no tools; bind some")
        return "any"
    if isinstance(given, str) and given in names:
        return given
    raise SettingsError(
        f'`tool_choice` must be "auto", "any", "required", "none", True, False or the name of a tool, got '
        f"{tool_choice!r}, and the tools are {list(names)}"
    )


def schema_of_format(response_format: object) -> Mapping[str, object] | None:
    """The schema in a `response_format` of OpenAI's form; None for text.

    Raises:
        SettingsError: it has another form.
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
            return closed(holder["schema"])
    raise SettingsError(
        '`response_format` must be {"type": "json_schema", "json_schema": {"schema": ...}}, {"type": "json_object"} or '
        f'{{"type": "text"}}, got {response_format!r:.200}'
    )
