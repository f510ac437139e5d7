"""Compare an answer with a text, word by word within one sentence: where they agree, and where they first differ."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memograft.prompt.words import WORD

__all__ = ["Parting", "Words", "contains", "parting", "sentences", "without"]

_SENTENCE_END = re.compile(r"[.!?\u2026]+(?=\W*(?:\s|$))|[\u3002\uff01\uff1f]+|\n+")


@dataclass(frozen=True)
class Words:
    """The words of a sentence.

    Attributes:
        words: in lower case.
        places: of each word in the text, (start, end) in characters.
    """

    words: tuple[str, ...]
    places: tuple[tuple[int, int], ...]

    def within(self, start: int, end: int) -> range:
        """Indices of the words that are entirely in text[start:end]."""
        inside = [n for n, (first, last) in enumerate(self.places) if start <= first and last <= end]
        return range(inside[0], inside[-1] + 1) if inside else range(0)


@dataclass(frozen=True)
class Parting:
    """The point at which a sentence and a text differ.

    Attributes:
        at: index of the first differing word of the sentence.
        otherwise: the words of the text from there to the end of its sentence.
    """

    at: int
    otherwise: str


def sentences(text: str) -> Iterator[Words]:
    """The sentences of a text that have words."""
    start = 0
    for end in [match.end() for match in _SENTENCE_END.finditer(text)] + [len(text)]:
        places = tuple(match.span() for match in WORD.finditer(text, start, end))
        if places:
            yield Words(tuple(text[a:b].lower() for a, b in places), places)
        start = end


def parting(sentence: Words, first: int, text: str) -> Parting | None:
    """Compare `sentence`, from its word with index `first` on, with a text, and return where they differ.

    If the text has the beginning in several places, the one with the longest agreement counts. None if the two agree to
    the end of one of them, or if the text does not have the first word.
    """
    wanted = sentence.words[first:]
    longest, otherwise = 0, ""
    for own in sentences(text):
        for n, word in enumerate(own.words):
            if not wanted or word != wanted[0]:
                continue
            rest = own.words[n:]
            same = next((k for k, pair in enumerate(zip(wanted, rest, strict=False)) if pair[0] != pair[1]), None)
            if same is None:
                return None
            if same > longest:
                longest = same
                otherwise = text[own.places[n + same][0] : own.places[-1][1]]
    return Parting(first + longest, otherwise) if longest else None


def contains(text: str, words: tuple[str, ...]) -> bool:
    """Whether a sentence of the text contains these words in sequence."""
    size = len(words)
    return any(own.words[n : n + size] == words for own in sentences(text) for n in range(len(own.words) - size + 1))


def without(start: int, end: int, cuts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is left of a stretch of characters without the stretches `cuts`."""
    left = [(start, end)]
    for first, last in cuts:
        left = [piece for a, b in left for piece in ((a, min(b, first)), (max(a, last), b)) if piece[0] < piece[1]]
    return left
