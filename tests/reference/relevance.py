"""Relevance by one pass over the whole prompt per document, with a hand-drawn attention mask: no cache, no hooks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


def question_loss(
    model: nn.Module, ids: Sequence[int], spans: Sequence[tuple[int, int]], question: tuple[int, int], seen: int | None
) -> float:
    """Nats of the question's tokens if what follows the documents sees only number `seen` of them, or none."""
    length = question[1]
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    tail = max(end for _, end in spans)
    for number, (start, end) in enumerate(spans):
        if number != seen:
            allowed[tail:, start:end] = False
    mask = torch.zeros(length, length).masked_fill(~allowed, torch.finfo(torch.float32).min)
    tokens = torch.tensor([list(ids[:length])])
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=mask[None, None], use_cache=False).logits[0].float()
    first = max(question[0], tail + 1)
    return float(F.cross_entropy(logits[first - 1 : -1], tokens[0, first:], reduction="sum"))
