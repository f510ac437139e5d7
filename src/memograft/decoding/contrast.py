"""Contrast: amplify what the memory changed relative to the base model.

    l = (1 + alpha) * l_phi - alpha * l_0           ("FastMem + CD", arXiv 2406.16069, there with alpha = 0.5)

l_phi are the logits with the memory, l_0 those without it, for the same prompt. Log-probabilities give the same
distribution, because they differ from logits by a constant.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["Contrast"]


class Contrast:
    """The rule of a row with the setting `contrast`.

    Args:
        alpha: strength, at least 0; 0 changes nothing.
    """

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha

    def __call__(self, logits: Tensor, base: Tensor, _tokens: Sequence[int]) -> Tensor:
        """(V,) with the memory, (V,) without -> (V,)."""
        return logits + self._alpha * (logits - base)
