"""Words and sentences of a prompt, found by their characters: where they stand, and what they are shared with."""

from __future__ import annotations

import re
from collections.abc import Sequence

from memograft.prompt.builder import Prompt, Span, token_span

__all__ = ["NOTHING", "nats_of", "nearest", "places", "sentences", "stem", "words"]

NOTHING = (0, 0)
_SENTENCES = 4
_SENTENCE = re.compile(r"\S.*?(?:[.!?](?=\s|$)|[\u3002\uff01\uff1f]|\n|$)")  # and the full-width . ! ?
_WORD = re.compile(r"\w+")


def places(prompt: Prompt, span: Span) -> list[tuple[str, Span]]:
    """The words of some tokens, in lower case, and the characters where each stands."""
    return [(m.group().casefold(), m.span()) for m in _WORD.finditer(prompt.text, *_characters(prompt, span))]


def words(prompt: Prompt, span: Span) -> dict[str, Span]:
    """The same with each word once: where it stands last."""
    return dict(places(prompt, span))


def sentences(prompt: Prompt, document: Span) -> list[Span]:
    """The sentences of a document, as tokens of the prompt."""
    found = _SENTENCE.finditer(prompt.text, *_characters(prompt, document))
    return [token_span(prompt.offsets, m.span()) for m in found]


def nearest(prompt: Prompt, document: Span) -> list[Span]:
    """The four sentences of a document that share most with the question; with no word in common the first ones."""
    asked = set(words(prompt, prompt.question))

    def shared(span: Span) -> int:  # longer words say more
        return sum(len(word) for word in asked & set(words(prompt, span)))

    return sorted(sentences(prompt, document), key=shared, reverse=True)[:_SENTENCES]


def stem(word: str) -> str:
    """The word without its last two letters, as long as four are left: "invented" and "inventor" have the same."""
    return word[: max(4, len(word) - 2)]


def nats_of(prompt: Prompt, place: Span, nats: Sequence[float], start: int) -> float:
    """The nats of the tokens that hold these characters; `nats[0]` is of the prompt's token `start`."""
    first, end = token_span(prompt.offsets, place)
    return sum(nats[max(first - start, 0) : max(end - start, 0)])


def _characters(prompt: Prompt, span: Span) -> Span:
    start, end = span
    return (prompt.offsets[start][0], prompt.offsets[end - 1][1]) if end > start else NOTHING
