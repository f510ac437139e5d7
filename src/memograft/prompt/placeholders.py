"""Hide texts from a chat template: it renders placeholders, which are replaced by the texts afterwards."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Container, Iterator, Mapping
from typing import Any

from memograft.errors import SettingsError

__all__ = ["Texts", "clean", "strings"]

_DEEPEST = 100  # levels of a nested value


class Texts:
    """Placeholders and their texts.

    A placeholder is a random number, which texts cannot guess. Templates do not change digits when they convert a
    string to ASCII JSON, Python's repr, or upper case.
    """

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._json: set[str] = set()
        self._mark = f"{secrets.randbelow(9 * 10**15) + 10**15}"

    def add(self, text: str) -> str:
        """Add a text and return its placeholder."""
        key = f"{self._mark}{len(self._texts):08}"
        self._texts[key] = clean(text)
        return key

    def within(self, value: Any, hidden: Container[str]) -> Any:
        """The nested value with placeholders for the hidden strings, keys too."""
        if isinstance(value, str):
            if value not in hidden:
                return value
            self._json.add(key := self.add(value))
            return key
        if isinstance(value, Mapping):
            return {self.within(k, hidden): self.within(v, hidden) for k, v in value.items()}
        return [self.within(v, hidden) for v in value] if isinstance(value, list | tuple) else value

    def fill(self, rendered: str) -> tuple[str, dict[str, list[tuple[int, int]]]]:
        """The rendered text with real texts, and each placeholder's places (several if the template repeats it)."""
        parts: list[str] = []
        places: dict[str, list[tuple[int, int]]] = {}
        length = 0
        pieces = re.split(f"({self._mark}[0-9]{{8}})", rendered)  # inserted texts are not searched
        for n, part in enumerate(pieces):
            text = self._texts.get(part, part)
            if part in self._json and pieces[n - 1][-1:] == pieces[n + 1][:1] == '"':  # the template writes JSON
                text = json.dumps(text, ensure_ascii=False)[1:-1]
            if part in self._texts:
                places.setdefault(part, []).append((length, length + len(text)))
            parts.append(text)
            length += len(text)
        return "".join(parts), places


def strings(value: object, depth: int = 0) -> Iterator[str]:
    """The strings of a nested value, keys too.

    Raises:
        SettingsError: it has a type that JSON does not have (transformers lets templates read attributes of some
            objects), or is nested too deeply.
    """
    if depth > _DEEPEST:
        raise SettingsError(
            f"tools and messages may be nested {_DEEPEST} levels deep, got more, or a value that contains itself; "
            "flatten it"
        )
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, tuple):
                raise _not_json(key)
            yield from strings(key, depth + 1)
            yield from strings(inner, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings(inner, depth + 1)
    elif value is not None and not isinstance(value, int | float):
        raise _not_json(value)


def _not_json(value: object) -> SettingsError:
    return SettingsError(
        "tools and messages may have JSON values only (text, numbers, booleans, None, lists, mappings of text), got "
        f"{type(value).__name__}; convert it"
    )


def clean(text: str) -> str:
    """Join surrogate pairs, and replace unpaired surrogates by U+FFFD; tokenizers accept neither."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
