"""Contrast: away from what the base model would say anyway, further into what the memory changed.

    l = (1 + alpha) * l_phi - alpha * l_0           ("FastMem + CD", arXiv 2406.16069, there with alpha = 0.5)

l_phi are the logits with the memory, l_0 those without it, of the same prompt. After a softmax it is the same with
log-probabilities in place of logits: they differ by one number per distribution.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["Contrast"]


class Contrast:
    """The rule of a row whose settings say `contrast`.

    Args:
        alpha: how far, at least 0, where it changes nothing.
    """

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha

    def __call__(self, logits: Tensor, base: Tensor, _tokens: Sequence[int]) -> Tensor:
        """(V,) with the memory, (V,) without -> (V,)."""
        return logits + self._alpha * (logits - base)
