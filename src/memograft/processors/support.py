"""The support gate: the memorized distribution speaks only where the base model is about to say what no document says.

Both distributions of a token are known at the price of one more FFN and head, since they share the trunk. Ours, beyond
the paper; in its simplest form: the base model's choice stands if that token occurs in the row's documents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["SupportGate"]


class SupportGate:
    """For each row with a token set: the base model's logits wherever its first choice is in the set.

    Args:
        supported: per row the tokens of its documents, or None for rows without a gate.
        vocabulary: V.
    """

    def __init__(self, supported: Sequence[set[int] | None], vocabulary: int, device: torch.device) -> None:
        rows = [n for n, tokens in enumerate(supported) if tokens is not None]
        self.rows = torch.tensor(rows, device=device)
        self._supported = torch.zeros(len(rows), vocabulary, dtype=torch.bool, device=device)
        for n, row in enumerate(rows):
            self._supported[n, list(supported[row] or ())] = True

    def __call__(self, logits: Tensor, base: Tensor) -> Tensor:
        """(B, V) memorized, (G, V) those of the base model for the G gated rows -> (B, V)."""
        rows = self.rows.to(logits.device)
        stands = self._supported.to(base.device).gather(1, base.argmax(-1, keepdim=True))
        return logits.index_copy(0, rows, torch.where(stands, base, logits[rows]))
