"""Texts that a chat template never sees: it renders placeholders, which are replaced afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["Texts", "clean", "has_placeholders", "strings"]

_OPEN, _CLOSE = "\ue000", "\ue001"  # private-use characters: no template treats them specially


class Texts:
    """Placeholders, and the texts that they stand for."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._json: set[str] = set()

    def add(self, text: str) -> str:
        key = f"{_OPEN}{len(self._texts)}{_CLOSE}"
        self._texts[key] = clean(text)
        return key

    def within(self, value: Any, spells: Callable[[str], bool]) -> Any:
        """The same nested value with placeholders for the strings that `spells` is true of."""
        if isinstance(value, str):
            if not spells(value):
                return value
            self._json.add(key := self.add(value))
            return key
        if isinstance(value, Mapping):
            return {self.within(k, spells): self.within(v, spells) for k, v in value.items()}
        return [self.within(v, spells) for v in value] if isinstance(value, list | tuple) else value

    def fill(self, rendered: str) -> tuple[str, dict[str, list[tuple[int, int]]]]:
        """The real text, and where each placeholder's text went: more than one place if a template shows it twice."""
        parts: list[str] = []
        places: dict[str, list[tuple[int, int]]] = {}
        length = 0
        pieces = re.split(f"({_OPEN}[0-9]+{_CLOSE})", rendered)  # the texts themselves are never looked into
        for n, part in enumerate(pieces):
            text = self._texts.get(part, part)
            if part in self._json and pieces[n - 1][-1:] == pieces[n + 1][:1] == '"':  # the template writes JSON
                text = json.dumps(text, ensure_ascii=False)[1:-1]
            if part in self._texts:
                places.setdefault(part, []).append((length, length + len(text)))
            parts.append(text)
            length += len(text)
        return "".join(parts), places


def has_placeholders(text: str) -> bool:
    """Whether a text holds what a placeholder begins or ends with."""
    return _OPEN in text or _CLOSE in text


def strings(value: Any) -> Iterator[str]:
    """The strings of a nested value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from strings(key)
            yield from strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings(inner)


def clean(text: str) -> str:
    """Joined surrogate pairs, and U+FFFD for halves of one: tokenizers take neither."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
