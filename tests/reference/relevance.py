"""Relevance by one pass over the whole prompt per document, with an explicit attention mask; no cache, no hooks."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Span = tuple[int, int]


def question_losses(model: nn.Module, prompt: Any, seen: Span, end: int, lead: Sequence[int] = ()) -> list[float]:
    """Nats of the question's tokens if the tail attends only to `seen` of the documents, with positions from `end`."""
    tail = max(stop for _, stop in (*prompt.spans, *prompt.history))
    ids = [*prompt.ids[:tail], *lead, *prompt.ids[tail : prompt.question[1]]]
    allowed = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    first = min(start for start, stop in prompt.spans if stop > start)
    for start, stop in ((first, tail), *prompt.history):
        allowed[tail:, start:stop] = False
    allowed[tail:, seen[0] : seen[1]] = True
    mask = torch.zeros(len(ids), len(ids)).masked_fill(~allowed, torch.finfo(torch.float32).min)
    positions = [*range(tail), *range(end, end + len(ids) - tail)]
    extra: dict[str, Any] = {}
    if "position_ids" in inspect.signature(model.forward).parameters:
        extra["position_ids"] = torch.tensor([positions])
    tokens = torch.tensor([ids])
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=mask[None, None], use_cache=False, **extra).logits[0].float()
    start = max(prompt.question[0], tail + 1, prompt.question[1] - 64) + len(lead)
    losses: list[float] = F.cross_entropy(logits[start - 1 : -1], tokens[0, start:], reduction="none").tolist()
    return losses


def relevance(model: nn.Module, prompt: Any, document: Span, lead: Sequence[int], part: Span | None = None) -> float:
    """The formula: the larger of the message's relevance and that of the question within it."""
    if part is not None:
        return max(
            relevance(model, prompt, document, lead), relevance(model, replace(prompt, question=part), document, lead)
        )
    first = min(start for start, stop in prompt.spans if stop > start)
    led = question_losses(model, prompt, (0, 0), first, lead)
    surprise = sum(led)
    left = sum(question_losses(model, prompt, document, document[1]))
    held = {w[: max(4, len(w) - 2)] for w in _words(prompt, document)}
    tokens = range(prompt.question[1] - len(led), prompt.question[1])
    shared = sum(
        nats
        for word, (start, stop) in _words_at(prompt, prompt.question)
        if word[: max(4, len(word) - 2)] in held
        for token, nats in zip(tokens, led, strict=True)
        if prompt.offsets[token][1] > start and prompt.offsets[token][0] < stop
    )
    z = (surprise - left + 0.3 * shared) / math.sqrt(surprise)
    return z / (1 + abs(z))


def _words(prompt: Any, span: Span) -> list[str]:
    return [word for word, _ in _words_at(prompt, span)]


def _words_at(prompt: Any, span: Span) -> list[tuple[str, Span]]:
    start, end = prompt.offsets[span[0]][0], prompt.offsets[span[1] - 1][1]
    return [
        (m.group().casefold(), (m.start() + start, m.end() + start))
        for m in re.finditer(r"\w+", prompt.text[start:end])
    ]
