"""Relevance by one pass over the whole prompt per sentence, with a hand-drawn attention mask: no cache, no hooks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

Span = tuple[int, int]


def question_loss(
    model: nn.Module,
    ids: Sequence[int],
    spans: Sequence[tuple[int, int]],
    question: tuple[int, int],
    seen: tuple[int, int],
) -> float:
    """Nats of the question's tokens if what follows the documents sees only the span `seen` of them."""
    length = question[1]
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    tail = max(end for _, end in spans)
    for start, end in spans:
        allowed[tail:, start:end] = False
    allowed[tail:, seen[0] : seen[1]] = True
    mask = torch.zeros(length, length).masked_fill(~allowed, torch.finfo(torch.float32).min)
    tokens = torch.tensor([list(ids[:length])])
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=mask[None, None], use_cache=False).logits[0].float()
    first = max(question[0], tail + 1)
    return float(F.cross_entropy(logits[first - 1 : -1], tokens[0, first:], reduction="sum"))
