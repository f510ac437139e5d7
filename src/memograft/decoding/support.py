"""The support gate: the memorized distribution speaks only where the base model is about to say what no document says.

Ours, beyond the paper, and in its simplest form: the base model's choice stands if that token occurs in the documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["SupportGate"]


class SupportGate:
    """The rule of a row whose settings say `gate="support"`.

    Args:
        supported: the tokens of its documents.
    """

    def __init__(self, supported: Iterable[int]) -> None:
        self._supported = torch.tensor(sorted(set(supported)), dtype=torch.long)

    def __call__(self, logits: Tensor, base: Tensor, _tokens: Sequence[int]) -> Tensor:
        """(V,) with the memory, (V,) without -> (V,): the latter wherever its first choice is supported."""
        self._supported = self._supported.to(base.device)
        return torch.where((self._supported == base.argmax()).any(), base, logits)
