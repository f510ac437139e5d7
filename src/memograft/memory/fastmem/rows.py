"""Select the rows of a prefill that memorizing trains on, from token positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from memograft.model.kv import Prefill
from memograft.prompt.builder import Prompt

__all__ = ["Blocks", "TrainingRows", "context_rows", "gather", "merge"]

# Rows of a block: shorter ones cost more in copies of their context's weights than they save in padding; longer ones
# are no faster.
_SHORTEST, _LONGEST = 64, 256


@dataclass(frozen=True)
class TrainingRows:
    """The positions at which the model predicts context tokens: N rows, those of B contexts one after the other.

    Attributes:
        x: last-FFN inputs (N, D).
        residual: residual stream that the FFN's output is added to (N, D).
        targets: the context tokens (N,).
        lengths: rows of each context (B).
        ends: how many of a context's rows, its last ones, predict the end of a turn instead of a context token (B);
            left out, none.
    """

    x: Tensor
    residual: Tensor
    targets: Tensor
    lengths: tuple[int, ...]
    ends: tuple[int, ...] = ()

    @property
    def slices(self) -> list[slice]:
        """The rows of each context (B)."""
        return [slice(end - length, end) for length, end in zip(self.lengths, accumulate(self.lengths), strict=True)]

    @property
    def texts(self) -> list[slice]:
        """The rows of each context that predict a context token (B)."""
        ends = self.ends or (0,) * len(self.lengths)
        return [slice(own.start, own.stop - end) for own, end in zip(self.slices, ends, strict=True)]

    def single(self, context: int) -> TrainingRows:
        """The rows of one context."""
        own, ends = self.slices[context], self.ends[context : context + 1]
        return TrainingRows(self.x[own], self.residual[own], self.targets[own], (self.lengths[context],), ends)

    @cached_property
    def blocks(self) -> Blocks:
        """The rows as blocks of equal length for batched matrix products."""
        return Blocks.of(self)


@dataclass(frozen=True)
class Blocks:
    """N rows arranged as C blocks of M, each of one context, the last of a context padded with its first row.

    A CPU computes what padding it is given, and contexts differ much in length, so they are cut into several blocks of
    the shortest one's length. On a GPU each context is one block: more rows cost little there, more blocks are copies.

    Attributes:
        rows: index of each row (C, M).
        real: (C, M), False at padding.
        context: index of each block's context (C,); None if each context is one block.
    """

    rows: Tensor
    real: Tensor
    context: Tensor | None

    @classmethod
    def of(cls, rows: TrainingRows) -> Blocks:
        """Cut the rows of each context into blocks."""
        device, longest = rows.x.device, max(rows.lengths)
        size = longest
        if device.type == "cpu":
            size = min(longest, max(_SHORTEST, min(rows.lengths)))
            size = math.ceil(size / math.ceil(size / _LONGEST))
        parts, contexts, firsts = [], [], []
        for context, own in enumerate(rows.slices):
            for start in range(own.start, own.stop, size):
                parts.append(torch.arange(start, min(start + size, own.stop)))
                contexts.append(context)
                firsts.append(own.start)
        index = pad_sequence(parts, batch_first=True, padding_value=-1)
        first = torch.tensor(firsts)[:, None]
        owner = None if len(parts) == len(rows.lengths) else torch.tensor(contexts, device=device)
        return cls(index.where(index >= 0, first).to(device), (index >= 0).to(device), owner)

    def spread(self, per_context: Tensor, part: slice = slice(None)) -> Tensor:
        """(B, ...) -> (C, ...): what belongs to each context, once for each of its blocks, for a part of the blocks."""
        return per_context[part] if self.context is None else per_context[self.context[part]]


def context_rows(filled: Prefill, row: int, prompt: Prompt, end: int | None = None) -> TrainingRows:
    """The rows of one prompt that predict its context tokens, each one position before its token. One context.

    With `end`, a token id, also the rows of each document's last token, which are to predict that token.
    """
    device = filled.x.device  # with a device map, not the device of the token ids
    # The prompt's last token is not among the columns of a prefill.
    lasts = [stop - 1 for start, stop in prompt.spans if start < stop < len(prompt.ids)] if end is not None else []
    before = filled.columns(row, [*(t - 1 for t in prompt.context), *lasts]).to(device)
    targets = filled.ids[row, filled.columns(row, prompt.context)].to(device)
    if end is not None:
        targets = torch.cat([targets, targets.new_full((len(lasts),), end)])
    x, residual = filled.x[row, before].detach(), filled.residual[row, before].detach()
    return TrainingRows(x, residual, targets, (len(before),), (len(lasts),))


def merge(parts: Sequence[TrainingRows]) -> TrainingRows:
    """Several batches of contexts as one."""
    return TrainingRows(
        torch.cat([p.x for p in parts]),
        torch.cat([p.residual for p in parts]),
        torch.cat([p.targets for p in parts]),
        tuple(length for p in parts for length in p.lengths),
        tuple(end for p in parts for end in p.ends or (0,) * len(p.lengths)),
    )


def gather(prompt: Prompt) -> tuple[int, ...]:
    """The prompt's tokens up to the end of its last document, without the prompt's last token."""
    return prompt.ids[: min(max((end for _, end in prompt.spans), default=0), len(prompt.ids) - 1)]
