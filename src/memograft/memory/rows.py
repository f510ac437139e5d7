"""From a prefilled prompt to the rows that memorizing trains on. Knows positions and tensors, not text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from memograft.memory.fastmem import Rows
from memograft.prefill import Prefill
from memograft.prompt import Prompt

__all__ = ["context_rows", "gather", "merge"]


def context_rows(filled: Prefill, row: int, prompt: Prompt) -> Rows:
    """The rows of one prompt that predict its context tokens: those just before them. Batch size 1."""
    device = filled.x.device  # the last layer's; with a device map not that of the token ids
    before = filled.columns(row, [t - 1 for t in prompt.context]).to(device)
    targets = filled.ids[row, filled.columns(row, prompt.context)].to(device)
    return Rows(
        x=filled.x[row, before][None].detach(),
        residual=filled.residual[row, before][None].detach(),
        targets=targets[None],
        mask=torch.ones(1, len(before), dtype=torch.bool, device=device),
    )


def merge(parts: Sequence[Rows]) -> Rows:
    """Several contexts as one batch, padded at the end."""

    def padded(tensors: Sequence[Tensor]) -> Tensor:
        return pad_sequence([t[0] for t in tensors], batch_first=True)

    return Rows(
        padded([p.x for p in parts]),
        padded([p.residual for p in parts]),
        padded([p.targets for p in parts]),
        padded([p.mask for p in parts]),
    )


def gather(prompt: Prompt) -> tuple[int, ...]:
    """The prompt's tokens up to the end of its last document, but never its last token, which decoding runs."""
    return prompt.ids[: min(max((end for _, end in prompt.spans), default=0), len(prompt.ids) - 1)]
