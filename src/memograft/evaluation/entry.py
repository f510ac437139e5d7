"""`Entry`: one JSON object of a file of questions, or one row of a set on the hub. Its errors name the place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from memograft.errors import SettingsError

__all__ = ["Entry", "named"]


class Entry:
    """Named fields that are checked when they are read.

    Args:
        file: path or hub id.
        place: place in that file, e.g. "line 3".
        fields: the parsed fields.
        noun: the name of an entry in errors, "a line" or "a record".

    Raises:
        SettingsError: `fields` is not a JSON object.
    """

    def __init__(self, file: str, place: str, fields: object, noun: str = "a record") -> None:
        self.file, self.place, self._noun = file, place, noun
        if not isinstance(fields, Mapping):
            self.refuse(f"{noun} must be one JSON object, got {named(fields)}", 'write {"question": ...}')
        self.fields: Mapping[str, Any] = fields

    def has(self, *names: str) -> bool:
        """Whether all of these fields exist."""
        return all(name in self.fields for name in names)

    def value(self, *names: str) -> Any:
        """The first of these fields that exists.

        Raises:
            SettingsError: none exists.
        """
        for name in names:
            if name in self.fields:
                return self.fields[name]
        found = ", ".join(f"`{field}`" for field in self.fields) or "no field at all"
        needed = " or ".join(f"`{name}`" for name in names)
        self.refuse(f"{self._noun} needs the field {needed}, got {found}", "add it")

    def text(self, *names: str, default: str | None = None) -> str:
        """The first of these fields that exists, as a string. It must not be blank unless there is a default.

        Raises:
            SettingsError: there is none, or it is not such a string.
        """
        if default is not None and not any(name in self.fields for name in names):
            return default
        value, said = self.value(*names), self._said(names)
        if not isinstance(value, str):
            self.refuse(f"`{said}` must be a string, got {named(value)}", "put it in quotation marks")
        if default is None and not value.strip():
            left_out = self._noun.removeprefix("a ")
            self.refuse(f"`{said}` must not be empty, got {value!r}", f"fill it in, or leave the {left_out} out")
        return value

    def texts(self, *names: str) -> tuple[str, ...]:
        """The first of these fields that exists, a string or a list of strings, without blank and repeated ones.

        Raises:
            SettingsError: there is none, or it has another type.
        """
        value = self.value(*names)
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
            self.refuse(f"`{self._said(names)}` must be a list of strings, got {named(value)}", 'write ["...", ...]')
        return tuple(dict.fromkeys(v.strip() for v in values if v.strip()))

    def inner(self, name: str) -> list[Entry]:
        """The objects in the list `name`.

        Raises:
            SettingsError: it is not a list of objects.
        """
        value = self.value(name)
        if not isinstance(value, list | tuple):
            self.refuse(f"`{name}` must be a list of JSON objects, got {named(value)}", "write [{...}, ...]")
        return [Entry(self.file, f"{self.place}, {name}[{n}]", v, self._noun) for n, v in enumerate(value)]

    def refuse(self, rule: str, remedy: str, cause: BaseException | None = None) -> NoReturn:
        """Raise a SettingsError with the place, the rule and the remedy."""
        raise SettingsError(f"{self.file}, {self.place}: {rule}; {remedy}") from cause

    def _said(self, names: tuple[str, ...]) -> str:
        return next(name for name in names if name in self.fields)


def named(value: object) -> str:
    """A value for an error message: as JSON, shortened."""
    said = json.dumps(value, ensure_ascii=False, default=str)
    return said if len(said) <= 60 else said[:57] + "..."
