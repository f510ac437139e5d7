"""The support gate: keep the base model's distribution where its first choice occurs in the documents.

Not part of the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["SupportGate"]


class SupportGate:
    """The rule of a row with the setting `gate="support"`.

    Args:
        supported: the tokens of its documents.
    """

    def __init__(self, supported: Iterable[int]) -> None:
        self._supported = torch.tensor(sorted(set(supported)), dtype=torch.long)

    def __call__(self, logits: Tensor, base: Tensor, _tokens: Sequence[int]) -> Tensor:
        """(V,) with the memory, (V,) without -> (V,): the latter if its most likely token is supported."""
        self._supported = self._supported.to(base.device)
        return torch.where((self._supported == base.argmax()).any(), base, logits)
