"""The support gate: the memorized distribution speaks only where the base model is about to say what no document says.

Both distributions of a token are known at the price of one more FFN and head, since they share the trunk. Ours, beyond the
paper; in its simplest form: the base model's choice stands if that token occurs in the row's documents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from memograft.backbone import Backbone, Watched

__all__ = ["SupportGate"]


class SupportGate(LogitsProcessor):
    """For each row with a token set: the base model's scores wherever its first choice is in the set.

    Args:
        supported: per row the tokens of its documents, or None for rows without a gate.
        seen: the last-FFN inputs of the step in progress, from `Backbone.watch`.
    """

    supports_continuous_batching = False  # it needs the hidden states of the very step

    def __init__(self, backbone: Backbone, seen: Watched, supported: Sequence[set[int] | None], vocabulary: int) -> None:
        self._backbone, self._seen = backbone, seen
        self._rows = torch.tensor([n for n, tokens in enumerate(supported) if tokens is not None])
        self._supported = torch.zeros(len(self._rows), vocabulary, dtype=torch.bool)
        for n, row in enumerate(self._rows.tolist()):
            self._supported[n, list(supported[row] or ())] = True

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, T) ids, (B, V) memorized scores -> (B, V) scores."""
        device = scores.device
        rows, supported = self._rows.to(device), self._supported.to(device)
        x, residual = (t[rows.to(t.device), -1:] for t in self._seen.rows())
        base = self._backbone.logits(x, residual)[:, -1].to(scores)
        stands = supported.gather(1, base.argmax(-1, keepdim=True))
        return scores.index_copy(0, rows, torch.where(stands, base, scores[rows]))
