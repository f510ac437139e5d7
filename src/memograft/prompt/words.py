"""The words of a text, in any script."""

from __future__ import annotations

import re

__all__ = ["WORD", "words_of"]

WORD = re.compile(r"(?=\w)[\u2e80-\uffff]|[^\W\u2e80-\uffff]+")  # Chinese and Japanese: each character is one


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return WORD.findall(text.lower())
