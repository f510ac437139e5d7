"""Detect answers in which a model repeats itself."""

from __future__ import annotations

from collections import Counter

from memograft.prompt.words import words_of

__all__ = ["repeats"]

_REPEATED = 0.2  # fraction of word trigrams


def repeats(text: str) -> bool:
    """Whether more than a fifth of the text's word trigrams occur at least twice.

    >>> repeats("Rinse the pump. Rinse the pump. Rinse the pump."), repeats("The pump is blocked, so rinse the pump.")
    (True, False)
    """
    words = words_of(text)
    counts = Counter(zip(words, words[1:], words[2:], strict=False))
    again = sum(count for count in counts.values() if count > 1)
    return again > _REPEATED * sum(counts.values())
