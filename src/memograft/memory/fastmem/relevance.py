"""Judge how relevant each document is to the question, with the model's own likelihoods, before memorizing.

    z(d) = (L - L(question | d) + 0.3 S(d)) / sqrt(L)        relevance(d) = z / (1 + |z|)

L(question | d) is the summed cross-entropy of the question's tokens in nats, given document d alone. Earlier turns are
masked, because they may already have the question in them. L is the same without any document, behind a line that asks
for a question (LEAD): any page makes a question expected, and that effect says nothing about the page. S(d) is the part
of L that belongs to words which occur in d.

A page about the topic of the question makes the question likelier and shares its words; another page changes nothing or
makes it less likely (relevance below 0). A sum of L nats varies by about sqrt(L). So 0.5 (z = 1) is an effect of the
size of chance, and the same threshold suits models for which a question costs 8 nats and those for which it costs 50.

The question is the last user message. If that has other text too (instructions, a form), the question within it is also
judged alone, and the larger relevance counts: instructions have a high cross-entropy that no page reduces. The whole
message still counts, because the topic may be in the words around the question.

This is the query likelihood of retrieval (Ponte and Croft, 1998), computed with the model that will answer.
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
_SHARED = 0.3  # weight of S(d)


def can_judge(prompt: Prompt) -> bool:
    """Whether there are documents before the question, so that they can change its likelihood."""
    start, end = prompt.question
    return end - start > 1 and any(b > a for a, b in prompt.spans) and start >= max(b for _, b in prompt.spans)


def relevances(
    backbone: Backbone,
    filled: Prefill,
    rows: Sequence[int],
    prompts: Sequence[Prompt],
    lead: Sequence[int],
    led: Sequence[tuple[Prefill, int] | None] = (),
) -> list[tuple[float, ...]]:
    """The relevance of each document, for each of the prompts; these are in the given rows of `filled`.

    `lead` are the tokens of LEAD, `led` the passes that already ran the questions behind it; see `Tails`. A relevance
    is at most 1; it is 0 for an empty document, or if the question costs no nats.
    """
    sights = [_sights(n, prompt, tuple(lead)) for n, prompt in enumerate(prompts)]
    parts = [asked_in(prompt) for prompt in prompts]
    losses = iter(Tails(backbone, filled, rows, prompts, parts, led).losses([s for own in sights for s in own]))
    nats = [[next(losses).tolist() for _ in own] for own in sights]
    return [_larger(prompt, part, own) for prompt, part, own in zip(prompts, parts, nats, strict=True)]


def _sights(number: int, prompt: Prompt, lead: tuple[int, ...]) -> list[Sight]:
    """What the question is conditioned on: LEAD alone, then each document that has tokens."""
    start = before_documents(prompt)
    return [Sight(number, (start, start), start, lead)] + [
        Sight(number, span, span[1]) for span in prompt.spans if span[1] > span[0]
    ]


def _larger(prompt: Prompt, part: Span | None, nats: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The larger relevance of the message and of the question within it. `nats`: the message's tokens for each
    sight."""
    whole = _judged(prompt, prompt.question, nats)
    return whole if part is None else tuple(map(max, whole, _judged(prompt, part, nats)))


def _judged(prompt: Prompt, asked: Span, nats: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The relevance by these tokens of the message alone."""
    start = prompt.question[1] - len(nats[0])
    first, end = (max(token, start) for token in last_of(asked))
    led, *seen = (own[first - start : end - start] for own in nats)
    surprise, by_word, left = sum(led), _nats_by_word(prompt, asked, led, first), iter(seen)

    def judged(document: Span) -> float:
        return _relevance(surprise, sum(next(left)), _shared(by_word, prompt, document))

    return tuple(judged((start, end)) if end > start else 0.0 for start, end in prompt.spans)


def _relevance(surprise: float, left: float, shared: float) -> float:
    if surprise <= 0:  # no document can make the question likelier
        return 0.0
    z = (surprise - left + _SHARED * shared) / math.sqrt(surprise)
    return z / (1 + abs(z))


def _nats_by_word(prompt: Prompt, asked: Span, nats: Sequence[float], start: int) -> dict[str, float]:
    """Summed nats of the question's words by their stems; `nats` are of its tokens from `start` on."""
    found: dict[str, float] = {}
    for word, place in places(prompt, asked):
        found[stem(word)] = found.get(stem(word), 0.0) + nats_of(prompt, place, nats, start)
    return found


def _shared(by_word: dict[str, float], prompt: Prompt, document: Span) -> float:
    held = {stem(word) for word, _ in places(prompt, document)}
    return sum(nats for word, nats in by_word.items() if word in held)
