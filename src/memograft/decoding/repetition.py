"""Whether a text repeats itself, as a model does that has got into a loop."""

from __future__ import annotations

import re
from collections import Counter

__all__ = ["WORD", "repeats", "words_of"]

WORD = re.compile(r"(?=\w)[\u2e80-\uffff]|[^\W\u2e80-\uffff]+")  # Chinese and Japanese: each character is one
_REPEATED = 0.2  # share of a text's word trigrams beyond which it repeats itself


def repeats(text: str) -> bool:
    """Whether more than a fifth of the text's word trigrams occur at least twice.

    >>> repeats("Rinse the pump. Rinse the pump. Rinse the pump."), repeats("The pump is blocked, so rinse the pump.")
    (True, False)
    """
    words = words_of(text)
    counts = Counter(zip(words, words[1:], words[2:], strict=False))
    again = sum(count for count in counts.values() if count > 1)
    return again > _REPEATED * sum(counts.values())


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return WORD.findall(text.lower())
