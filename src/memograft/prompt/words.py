"""The words of a text, in any script."""

from __future__ import annotations

import re

__all__ = ["WORD", "words_of"]

WORD = re.compile(r"(?=\w)[\u2e80-\uffff]|[^\W\u2e80-\uffff]+")  # each Chinese or Japanese character is a word


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return WORD.findall(text.lower())
