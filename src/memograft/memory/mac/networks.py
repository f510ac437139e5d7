"""The networks of MAC (Memory of Amortized Contexts, arXiv 2403.04317): amortise, aggregate, modulate.

    document d_k ──> frozen LM + LoRA ──> T learned tokens ──> head ──> phi_k (T, D)          once, into the bank
    question x ────> frozen LM + LoRA ──> T learned tokens ──> head ──> queries (T, D)
                                                                          │ cross-attention over all phi of the bank
    keys and values of every layer (T columns) <── linear <── phi* (T, D) ┘

Sizes: T tokens, D the model's width, N tokens of a bank (T for each document), B questions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

__all__ = ["CrossAttention", "Networks", "hierarchical"]

Shapes = Sequence[tuple[int, int]]  # of each layer: key and value heads H, head dimension
Layers = list[tuple[Tensor, Tensor]]


class CrossAttention(nn.Module):
    """A block of the aggregation network: attention from questions to the bank, then a feed-forward network."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.asking, self.bank, self.inner = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self, asked: Tensor, bank: Tensor, seen: Tensor | None = None, shares: list[Tensor] | None = None
    ) -> Tensor:
        """asked (B, T, D), bank (N, D) or (B, N, D), seen (B, N) or None -> (B, T, D)."""
        query = self._split(self.query(self.asking(asked)))
        mask = None if seen is None else seen[:, None, None]
        rows, heads, tokens, _ = query.shape
        few = shares is None and bank.ndim == 2 and rows * heads * tokens < bank.shape[-1]
        found = self._from_few(query, bank, mask) if few else self._from_many(query, bank, mask, shares)
        asked = asked + self.out(found.transpose(1, 2).flatten(2))
        changed: Tensor = asked + self.feed_forward(self.inner(asked))
        return changed

    def _from_many(
        self, query: Tensor, bank: Tensor, mask: Tensor | None, shares: list[Tensor] | None = None
    ) -> Tensor:
        """(B, heads, T, D / heads): attention with the keys and values of the whole bank."""
        key, value = self.key_value(self.bank(bank)).chunk(2, -1)
        key, value = (self._split(t if t.ndim == 3 else t.expand(len(query), -1, -1)) for t in (key, value))
        if shares is None:
            return scaled_dot_product_attention(query, key, value, mask)
        scores = query @ key.mT * query.shape[-1] ** -0.5
        weights = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)
        shares.append(weights.mean((1, 2)))
        found: Tensor = weights @ value
        return found

    def _from_few(self, query: Tensor, bank: Tensor, mask: Tensor | None) -> Tensor:
        """The same for few questions, without keys and values of the bank (N, D), whose products would cost most.

        The maps to keys and values, and the norm's factors, are applied to queries and results: what they add to all
        scores of a query does not change its softmax, and what they add to values is added once.
        """
        rows, heads, tokens, size = query.shape
        plain = layer_norm(bank, bank.shape[-1:], eps=self.bank.eps)
        key, value = (w.view(heads, size, -1) for w in self.key_value.weight.chunk(2))
        turned = (query @ key * self.bank.weight).flatten(1, 2)[:, None]  # (B, 1, heads * T, D)
        shared = plain.expand(rows, 1, -1, -1)
        means = scaled_dot_product_attention(turned, shared, shared, mask, scale=size**-0.5)
        means = means.view(rows, heads, tokens, -1) * self.bank.weight + self.bank.bias
        values: Tensor = means @ value.mT + self.key_value.bias.chunk(2)[1].view(heads, 1, size)
        return values

    def _split(self, states: Tensor) -> Tensor:
        """(B, T, D) -> (B, heads, T, D / heads)."""
        rows, tokens, width = states.shape
        return states.view(rows, tokens, self.heads, width // self.heads).transpose(1, 2)


class Networks(nn.Module):
    """What MAC trains beside the LoRA, in float32.

    Args:
        width: D.
        tokens: T.
        shapes: of the model's keys and values.
        blocks: of the aggregation network; 4 in the paper.
        heads: of its attention; must divide D.
    """

    def __init__(self, width: int, tokens: int, shapes: Shapes, blocks: int = 4, heads: int = 8) -> None:
        super().__init__()
        self.shapes = tuple(shapes)
        self.document_tokens = nn.Parameter(torch.empty(tokens, width))
        self.question_tokens = nn.Parameter(torch.empty(tokens, width))
        self.document_head, self.question_head = (
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)) for _ in range(2)
        )
        self.blocks = nn.ModuleList(CrossAttention(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        size = sum(2 * h * d for h, d in shapes)
        self.modulation = nn.Linear(width, size, bias=False)
        self.prefix = nn.Parameter(torch.empty(tokens, size))

    def amortise(self, states: Tensor) -> Tensor:
        """phi_k = g_amort(d_k): the LM's states at the T tokens behind documents (K, T, D) -> (K, T, D)."""
        return self.document_head(states)  # type: ignore[no-any-return]

    def aggregate(
        self, states: Tensor, bank: Tensor, seen: Tensor | None = None, shares: list[Tensor] | None = None
    ) -> Tensor:
        """phi* = h_psi(g_input(x), M): states at the T tokens behind questions (B, T, D) -> (B, T, D).

        `bank` (N, D) are the tokens of all documents, for each question alike, or (B, N, D). Their order has no effect.
        `seen` (B, N) is True for the tokens that a question may attend to; None is all of them. To the list `shares`
        each block adds the mean attention that tokens of the bank get (B, N).
        """
        asked: Tensor = self.question_head(states)
        for block in self.blocks:
            asked = block(asked, bank, seen, shares)
        return self.norm(asked)  # type: ignore[no-any-return]

    def modulate(self, aggregated: Tensor) -> Layers:
        """phi* (B, T, D) -> keys and values of each layer (B, H, T, head dimension), as in P-tuning v2.

        They are a prefix that is the same for all questions, plus what the question found in the bank.
        """
        flat: Tensor = self.prefix + self.modulation(aggregated)
        rows, tokens, _ = flat.shape
        found, start = list[tuple[Tensor, Tensor]](), 0
        for heads, size in self.shapes:
            both = flat[..., start : start + 2 * heads * size].view(rows, tokens, 2, heads, size)
            key_value = both.permute(2, 0, 3, 1, 4)
            found.append((key_value[0], key_value[1]))
            start += 2 * heads * size
        return found


def hierarchical(networks: Networks, states: Tensor, bank: Tensor, group: int) -> Tensor:
    """phi* (B, T, D) with groups of modulations at a time, so that memory grows with `group` and not with K.

    Args:
        networks: trained, also in groups.
        states: at the T tokens behind questions (B, T, D).
        bank: (K, T, D), K modulations.
        group: how many are aggregated together. The results are aggregated in the same way until one is left.
    """
    found = [networks.aggregate(states, part.flatten(0, 1)) for part in torch.split(bank, group)]
    while len(found) > 1:
        found = [networks.aggregate(states, torch.cat(found[n : n + group], 1)) for n in range(0, len(found), group)]
    return found[0]
