"""The networks of MAC (Memory of Amortized Contexts, arXiv 2403.04317): amortise, aggregate, modulate.

    document d_k ──> frozen LM + LoRA ──> T learned tokens ──> head ──> phi_k (T, D)          once, into the bank
    question x ────> frozen LM + LoRA ──> T learned tokens ──> head ──> queries (T, D)
                                                                          │ cross-attention over all phi of the bank
    keys and values of every layer (T columns) <── linear <── phi* (T, D) ┘
    or a LoRA of rank T on the last FFN

Sizes: T tokens, D the model's width, N tokens of a bank (T for each document), B questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

__all__ = ["CrossAttention", "Form", "Lora", "Networks", "Prefix"]

Layers = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Prefix:
    """What phi* becomes: keys and values of every layer, as in P-tuning v2.

    Attributes:
        shapes: of each layer, key and value heads H and head dimension.
    """

    shapes: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Numbers for each of T tokens."""
        return sum(2 * h * d for h, d in self.shapes)

    def of(self, flat: Tensor) -> Layers:
        """(B, T, size) -> keys and values of each layer (B, H, T, head dimension)."""
        rows, tokens, _ = flat.shape
        found, start = list[tuple[Tensor, Tensor]](), 0
        for heads, size in self.shapes:
            both = flat[..., start : start + 2 * heads * size].view(rows, tokens, 2, heads, size)
            key_value = both.permute(2, 0, 3, 1, 4)
            found.append((key_value[0], key_value[1]))
            start += 2 * heads * size
        return found


@dataclass(frozen=True)
class Lora:
    """What phi* becomes: a LoRA of rank T on the last FFN, which leaves all keys and values as they are.

    Attributes:
        shapes: of each linear map of the FFN by its name, the sizes of input and output.
    """

    shapes: Mapping[str, tuple[int, int]]

    @property
    def size(self) -> int:
        """Numbers for each of T tokens."""
        return sum(i + o for i, o in self.shapes.values())

    def of(self, flat: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """(B, T, size) -> A (B, T, in) and B (B, out, T) of each map; as `adapter.stack`."""
        parts = torch.split(flat, [size for shape in self.shapes.values() for size in shape], -1)
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return {name: (a, b.mT) for name, (a, b) in zip(self.shapes, pairs, strict=True)}


Form = Prefix | Lora


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
        self,
        asked: Tensor,
        bank: Tensor,
        seen: Tensor | None = None,
        shares: list[Tensor] | None = None,
        part: int | None = None,
    ) -> Tensor:
        """asked (B, T, D), bank (N, D) or (B, N, D), seen (B, N) or None -> (B, T, D).

        With `part`, so many of the N tokens of one bank are read at a time, and all are seen.
        """
        query = self._split(self.query(self.asking(asked)))
        mask = None if seen is None else seen[:, None, None]
        rows, heads, tokens, _ = query.shape
        few = shares is None and bank.ndim == 2 and rows * heads * tokens < bank.shape[-1]
        if few or part is not None:
            found = self._from_few(query, bank, mask, part)
        else:
            found = self._from_many(query, bank, mask, shares)
        asked = asked + self.out(found.transpose(1, 2).flatten(2))
        changed: Tensor = asked + self.feed_forward(self.inner(asked))
        return changed

    def _from_many(
        self, query: Tensor, bank: Tensor, mask: Tensor | None, shares: list[Tensor] | None = None
    ) -> Tensor:
        """(B, heads, T, D / heads): attention with the keys and values of the whole bank."""
        rows, _, tokens, _ = query.shape
        both = self.key_value(self.bank(bank))
        key, value = (self._split(t) for t in (both if bank.ndim == 3 else both[None]).chunk(2, -1))
        if bank.ndim == 2:  # one bank for all rows, which are then one row of B * T tokens
            query = query.transpose(0, 1).flatten(1, 2)[None]
            mask = None if mask is None else mask[:, 0].expand(-1, tokens, -1).flatten(0, 1)
        if shares is None:
            found = scaled_dot_product_attention(query, key, value, mask)
        else:
            scores = (query * query.shape[-1] ** -0.5) @ key.mT
            weights = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)
            of_rows = weights[0].unflatten(1, (rows, tokens)) if bank.ndim == 2 else weights.transpose(0, 1)
            shares.append(of_rows.mean((0, 2)))  # heads, rows, tokens, bank: few passes over a large tensor
            found = weights @ value
        return found[0].view(-1, rows, tokens, found.shape[-1]).transpose(0, 1) if bank.ndim == 2 else found

    def _from_few(self, query: Tensor, bank: Tensor, mask: Tensor | None, part: int | None) -> Tensor:
        """The same for few questions, without keys and values of the bank (N, D), whose products would cost most.

        The maps to keys and values, and the norm's factors, are applied to queries and results: what they add to all
        scores of a query does not change its softmax, and what they add to values is added once.
        """
        rows, heads, tokens, size = query.shape
        key, value = (w.view(heads, size, -1) for w in self.key_value.weight.chunk(2))
        turned = (query @ key * self.bank.weight).flatten(1, 2)[:, None]  # (B, 1, heads * T, D)
        if part is None:
            shared = self._plain(bank).expand(rows, 1, -1, -1)
            means = scaled_dot_product_attention(turned, shared, shared, mask, scale=size**-0.5)
        else:
            means = self._in_parts(turned * size**-0.5, bank, part)
        means = means.view(rows, heads, tokens, -1) * self.bank.weight + self.bank.bias
        values: Tensor = means @ value.mT + self.key_value.bias.chunk(2)[1].view(heads, 1, size)
        return values

    def _in_parts(self, turned: Tensor, bank: Tensor, part: int) -> Tensor:
        """softmax(turned bank^T) bank, `part` tokens of the bank at a time (online softmax, arXiv 1805.02867)."""
        highest, total = turned.new_full(turned.shape[:-1], -torch.inf), turned.new_zeros(turned.shape[:-1])
        means = torch.zeros_like(turned)
        for own in torch.split(bank, part):
            plain = self._plain(own)
            scores = turned @ plain.mT
            before, highest = highest, torch.maximum(highest, scores.amax(-1))
            weights, kept = (scores - highest[..., None]).exp(), (before - highest).exp()
            total = total * kept + weights.sum(-1)
            means = means * kept[..., None] + weights @ plain
        return means / total[..., None]

    def _plain(self, bank: Tensor) -> Tensor:
        """The bank after the norm, without the norm's factors."""
        return layer_norm(bank, bank.shape[-1:], eps=self.bank.eps)

    def _split(self, states: Tensor) -> Tensor:
        """(B, T, D) -> (B, heads, T, D / heads)."""
        rows, tokens, width = states.shape
        return states.view(rows, tokens, self.heads, width // self.heads).transpose(1, 2)


class Networks(nn.Module):
    """What MAC trains beside the LoRA, in float32.

    Args:
        width: D.
        tokens: T.
        form: what the found becomes.
        blocks: of the aggregation network; 4 in the paper.
        heads: of its attention; must divide D.
    """

    def __init__(self, width: int, tokens: int, form: Form, blocks: int = 4, heads: int = 1) -> None:
        super().__init__()
        self.document_tokens = nn.Parameter(torch.empty(tokens, width))
        self.question_tokens = nn.Parameter(torch.empty(tokens, width))
        self.document_head, self.question_head = (
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)) for _ in range(2)
        )
        self.heads = heads
        self.blocks = nn.ModuleList(CrossAttention(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.modulation = nn.Linear(width, form.size, bias=False)
        self.start = nn.Parameter(torch.empty(tokens, form.size))

    def amortise(self, states: Tensor) -> Tensor:
        """phi_k = g_amort(d_k): the LM's states at the T tokens behind documents (K, T, D) -> (K, T, D)."""
        return self.document_head(states)  # type: ignore[no-any-return]

    def aggregate(
        self,
        states: Tensor,
        bank: Tensor,
        seen: Tensor | None = None,
        shares: list[Tensor] | None = None,
        group: int | None = None,
    ) -> Tensor:
        """phi* = h_psi(g_input(x), M): states at the T tokens behind questions (B, T, D) -> (B, T, D).

        `bank` (K, T, D) are modulations, for each question alike, or (B, K, T, D). Their order has no effect. `seen`
        (B, K) is True for those that a question may attend to; None is all of them. To the list `shares` is added the
        attention that each modulation gets (B, K), the mean of blocks, heads and the question's tokens. With `group`,
        so many modulations are read at a time, with the same result: memory is O(group T), for which the paper
        aggregates the groups' results again.
        """
        part = None if group is None else group * bank.shape[-2]
        tokens, mask = bank.flatten(-3, -2), None if seen is None else seen.repeat_interleave(bank.shape[-2], 1)
        asked: Tensor = self.question_head(states)
        each: list[Tensor] | None = None if shares is None else []
        for block in self.blocks:
            asked = block(asked, tokens, mask, each, part)
        if shares is not None and each is not None:
            shares.append(torch.stack(each).mean(0).view(len(asked), -1, bank.shape[-2]).sum(-1))
        return self.norm(asked)  # type: ignore[no-any-return]

    def modulate(self, aggregated: Tensor) -> Tensor:
        """phi* (B, T, D) -> (B, T, size): what all questions have in common, plus what this one found in the bank."""
        return self.start + self.modulation(aggregated)  # type: ignore[no-any-return]
