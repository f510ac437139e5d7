"""Which documents are about the question, judged by the model itself before anything is memorized.

    z(d) = (L - L(question | d) + 0.3 S(d)) / sqrt(L)        relevance(d) = z / (1 + |z|)

L(question | d) is the summed cross-entropy of the question's tokens in nats, with only the document d in sight; never
with what was said before, which may hold the question already. L is the same with no document: as it stands, or behind
a line that asks for a question, whichever is less, since that far any page would help. S(d) is the part of L that lies
in words the document holds. A page about what the question asks for takes much of its surprise away, and names it; one
about something else takes none, or makes it worse (below 0). A sum of L nats varies by about sqrt(L), so that 0.5 is a
page that explains as much as chance might; with it one threshold serves models that are surprised by 8 nats and by 50.

The question is the last user message. Where that holds more than a question (instructions, a form), all of this is done
for the question within it as well, and the larger relevance counts: instructions are surprising, and no page explains
them. The message as a whole still counts since the words around a question may be what it is about.

This is the query likelihood of retrieval (Ponte and Croft, 1998), with the model that is about to answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from memograft.memory.fastmem.tails import Sight, Tails, before_documents, last_of
from memograft.memory.fastmem.wording import asked_in, nats_of, places, stem
from memograft.model.backbone import Backbone
from memograft.model.kv import Prefill
from memograft.prompt.builder import Prompt, Span

__all__ = ["AUTO", "LEAD", "can_judge", "relevances"]

AUTO = 0.5  # chosen on the tuning splits of NQ-SWAP (SmolLM2) and of tiny's world: see docs/method.md
LEAD = "\n\nPlease write a question based on this text."
_SHARED = 0.3  # of a shared word's surprise that counts


def can_judge(prompt: Prompt) -> bool:
    """Whether the question stands behind the documents, so that they can make it more or less likely."""
    start, end = prompt.question
    return end - start > 1 and any(b > a for a, b in prompt.spans) and start >= max(b for _, b in prompt.spans)


def relevances(
    backbone: Backbone, filled: Prefill, rows: Sequence[int], prompts: Sequence[Prompt], lead: Sequence[int]
) -> list[tuple[float, ...]]:
    """For each of the prompts, which stand in these rows of `filled`: the relevance of each document.

    `lead` are the tokens of LEAD. 1 at most, and 0 for an empty document or a question that says nothing.
    """
    sights = [_sights(n, prompt, tuple(lead)) for n, prompt in enumerate(prompts)]
    parts = [asked_in(prompt) for prompt in prompts]
    losses = iter(Tails(backbone, filled, rows, prompts, parts).losses([s for own in sights for s in own]))
    nats = [[next(losses).tolist() for _ in own] for own in sights]
    return [_larger(prompt, part, own) for prompt, part, own in zip(prompts, parts, nats, strict=True)]


def _sights(number: int, prompt: Prompt, lead: tuple[int, ...]) -> list[Sight]:
    """No document, as it stands and led; then each that has a token."""
    start = before_documents(prompt)
    nothing = [Sight(number, (start, start), start), Sight(number, (start, start), start, lead)]
    return nothing + [Sight(number, span, span[1]) for span in prompt.spans if span[1] > span[0]]


def _larger(prompt: Prompt, part: Span | None, nats: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """By the message, and by the question within it if there is one; `nats` of its tokens under each of the sights."""
    whole = _judged(prompt, prompt.question, nats)
    return whole if part is None else tuple(map(max, whole, _judged(prompt, part, nats)))


def _judged(prompt: Prompt, asked: Span, nats: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """By these tokens of the message alone."""
    start = prompt.question[1] - len(nats[0])
    first, end = (max(token, start) for token in last_of(asked))
    plain, led, *seen = (own[first - start : end - start] for own in nats)
    surprise, by_word, left = min(sum(plain), sum(led)), _nats_by_word(prompt, asked, plain, first), iter(seen)

    def judged(document: Span) -> float:
        return _relevance(surprise, sum(next(left)), _shared(by_word, prompt, document))

    return tuple(judged((start, end)) if end > start else 0.0 for start, end in prompt.spans)


def _relevance(surprise: float, left: float, shared: float) -> float:
    if surprise <= 0:  # a question that says nothing is made no likelier by anything
        return 0.0
    z = (surprise - left + _SHARED * shared) / math.sqrt(surprise)
    return z / (1 + abs(z))


def _nats_by_word(prompt: Prompt, asked: Span, nats: Sequence[float], start: int) -> dict[str, float]:
    """How surprising the words of the question are, by their stems; `nats` are of its tokens from `start` on."""
    found: dict[str, float] = {}
    for word, place in places(prompt, asked):
        found[stem(word)] = found.get(stem(word), 0.0) + nats_of(prompt, place, nats, start)
    return found


def _shared(by_word: dict[str, float], prompt: Prompt, document: Span) -> float:
    held = {stem(word) for word, _ in places(prompt, document)}
    return sum(nats for word, nats in by_word.items() if word in held)
