"""Quick scores during training: is every token of the answer the most probable one, given the right tokens before it?

This is equal to exact greedy decoding of the expected sentence, and needs one forward pass per batch.
"""

from __future__ import annotations

import torch
from data import Example, encode
from sets import Item, items
from tokenizers import Tokenizer

BATCH = 32


@torch.no_grad()
def teacher_forced(model: torch.nn.Module, tokenizer: Tokenizer, n: int) -> dict[str, float]:
    """Share of `n` answers that greedy decoding produces exactly: without a page, and for three kinds of pages."""
    scores = {"closed": _score(model, tokenizer, [_example(i, pages=False) for i in items("agrees", n, "training")])}
    for which in ("unseen", "agrees", "contradicts"):
        scores[which] = _score(model, tokenizer, [_example(i, pages=True) for i in items(which, n, "training")])
    return scores


def _example(item: Item, pages: bool) -> Example:
    return Example([("user", item.question), ("assistant", item.answer)], list(item.documents) if pages else [])


def _score(model: torch.nn.Module, tokenizer: Tokenizer, examples: list[Example]) -> float:
    right = 0
    for start in range(0, len(examples), BATCH):
        rows = [encode(e, tokenizer) for e in examples[start : start + BATCH]]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in rows]).to(model.device)
        answer = torch.tensor([[w == 1.0 for w in ws] + [False] * (width - len(ws)) for _, ws in rows]).to(model.device)
        best = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
        right += int(((best == ids[:, 1:]) | ~answer[:, 1:]).all(dim=1).sum())
    return round(right / len(examples), 3)
