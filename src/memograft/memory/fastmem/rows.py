"""Select the rows of a prefill that memorizing trains on, from token positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from memograft.model.kv import Prefill
from memograft.prompt.builder import Prompt

__all__ = ["TrainingRows", "context_rows", "gather", "merge"]


@dataclass(frozen=True)
class TrainingRows:
    """The positions at which the model predicts context tokens, padded to the longest request.

    Attributes:
        x: last-FFN inputs (B, N, D).
        residual: residual stream that the FFN's output is added to (B, N, D).
        targets: the context tokens (B, N).
        mask: (B, N), False at padding.
    """

    x: Tensor
    residual: Tensor
    targets: Tensor
    mask: Tensor

    def single(self, row: int) -> TrainingRows:
        """The rows of one request, without padding."""
        own = self.mask[row]
        return TrainingRows(*(t[row, own][None] for t in (self.x, self.residual, self.targets, self.mask)))


def context_rows(filled: Prefill, row: int, prompt: Prompt) -> TrainingRows:
    """The rows of one prompt that predict its context tokens, each one position before its token. Batch size 1."""
    device = filled.x.device  # with a device map, not the device of the token ids
    before = filled.columns(row, [t - 1 for t in prompt.context]).to(device)
    targets = filled.ids[row, filled.columns(row, prompt.context)].to(device)
    return TrainingRows(
        x=filled.x[row, before][None].detach(),
        residual=filled.residual[row, before][None].detach(),
        targets=targets[None],
        mask=torch.ones(1, len(before), dtype=torch.bool, device=device),
    )


def merge(parts: Sequence[TrainingRows]) -> TrainingRows:
    """Several contexts as one batch, padded at the end."""

    def padded(tensors: Sequence[Tensor]) -> Tensor:
        return pad_sequence([t[0] for t in tensors], batch_first=True)

    return TrainingRows(
        padded([p.x for p in parts]),
        padded([p.residual for p in parts]),
        padded([p.targets for p in parts]),
        padded([p.mask for p in parts]),
    )


def gather(prompt: Prompt) -> tuple[int, ...]:
    """The prompt's tokens up to the end of its last document, without the prompt's last token, which decoding runs."""
    return prompt.ids[: min(max((end for _, end in prompt.spans), default=0), len(prompt.ids) - 1)]
