"""Find words and sentences in a prompt's text, and the question within a message."""

from __future__ import annotations

import re
from collections.abc import Sequence

from memograft.prompt.builder import Prompt, Span, token_span

__all__ = ["NOTHING", "asked_in", "nats_of", "nearest", "places", "sentences", "stem", "words"]

NOTHING = (0, 0)
_SENTENCES = 4
_SENTENCE = re.compile(r"\S.*?(?:[.!?](?=\s|$)|[\u3002\uff01\uff1f]|\n|$)")  # and the full-width . ! ?
_WORD = re.compile(r"\w+")
_CLOSED = "[\"'\\u201d\\u2019)\\]]*"  # quotes and brackets after the mark
_PART = re.compile(rf"\S.*?(?:[.!?]{_CLOSED}(?=\s|$)|[\u3002\uff01\uff1f\u061f]|\n|$)")
_MARKED = re.compile(rf"[?\uff1f\u061f]{_CLOSED}\s*$")
_LABEL = re.compile(r"(?:^|(?<=\n)|(?<=[.!?]\s))\w{1,20}:[^\S\n]+(?=\S)")  # "Question: "
_OPEN = re.compile(r"(?:\n[^\S\n]*\w[\w ]{0,30}|\s\w{1,20}):\s*$")  # "Answer:" at the end
_LEAST = 4  # tokens of a question: with fewer, pages cannot be told apart


def places(prompt: Prompt, span: Span) -> list[tuple[str, Span]]:
    """The words of a span of tokens, in lower case, with the characters of each."""
    return [(m.group().casefold(), m.span()) for m in _WORD.finditer(prompt.text, *_characters(prompt, span))]


def words(prompt: Prompt, span: Span) -> dict[str, Span]:
    """The words of a span of tokens, each with the characters of its last occurrence."""
    return dict(places(prompt, span))


def sentences(prompt: Prompt, document: Span) -> list[Span]:
    """The sentences of a document, as token spans of the prompt."""
    found = _SENTENCE.finditer(prompt.text, *_characters(prompt, document))
    return [token_span(prompt.offsets, m.span()) for m in found]


def nearest(prompt: Prompt, document: Span) -> list[Span]:
    """The four sentences of a document that share most with the question, or the first four if none shares a word."""
    asked = set(words(prompt, prompt.question))

    def shared(span: Span) -> int:  # longer words count more
        return sum(len(word) for word in asked & set(words(prompt, span)))

    return sorted(sentences(prompt, document), key=shared, reverse=True)[:_SENTENCES]


def asked_in(prompt: Prompt) -> Span | None:
    """The tokens of the question within the last user message; None if it is the whole message or is not found.

    If the message is a form that ends with an empty label ("Question: who wrote it Answer:"), the question is the text
    of the label before. Otherwise it is the last run of sentences that end in a question mark. No words are looked up,
    so this works in any language with such marks.
    """
    first, end = _characters(prompt, prompt.question)
    text = prompt.text[first:end]
    found = _in_form(text) or _marked(text)
    if found is None or text[slice(*found)].strip() == text.strip():
        return None
    part = token_span(prompt.offsets, (found[0] + first, found[1] + first))
    return part if part[1] - part[0] >= _LEAST else None


def _in_form(text: str) -> Span | None:
    if (opened := _OPEN.search(text)) is None:
        return None
    labels = list(_LABEL.finditer(text, 0, opened.start()))
    return (labels[-1].end(), opened.start()) if labels else None


def _marked(text: str) -> Span | None:
    parts = [m.span() for m in _PART.finditer(text)]
    asks = [_MARKED.search(text[slice(*part)]) is not None for part in parts]
    if True not in asks:
        return None
    last = first = len(asks) - 1 - asks[::-1].index(True)
    while first > 0 and asks[first - 1]:
        first -= 1
    start, end = parts[first][0], parts[last][1]
    label = _LABEL.match(text, start)
    return (label.end() if label and (text[:start] + text[end:]).strip() else start), end


def stem(word: str) -> str:
    """The word without its last two letters, but at least four letters: "invented" and "inventor" have the same
    stem."""
    return word[: max(4, len(word) - 2)]


def nats_of(prompt: Prompt, place: Span, nats: Sequence[float], start: int) -> float:
    """Summed nats of the tokens at these characters; `nats[0]` belongs to the prompt's token `start`."""
    first, end = token_span(prompt.offsets, place)
    return sum(nats[max(first - start, 0) : max(end - start, 0)])


def _characters(prompt: Prompt, span: Span) -> Span:
    start, end = span
    return (prompt.offsets[start][0], prompt.offsets[end - 1][1]) if end > start else NOTHING
