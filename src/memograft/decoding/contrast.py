"""Contrast: amplify what the memory changed relative to the base model.

    l = (1 + alpha) * l_phi - alpha * l_0           ("FastMem + CD", arXiv 2406.16069, there with alpha = 0.5)
    alpha = JSD(p_phi, p_0) in nats, for each token                              ("adaptive", arXiv 2409.07394)

l_phi are the logits with the memory, l_0 those without it, for the same prompt. Log-probabilities give the same
distribution, because they differ from logits by a constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from memograft.decoding.divergence import jensen_shannon
from memograft.errors import SettingsError

__all__ = ["Alpha", "Contrast", "check_alpha", "contrasted"]

Alpha = float | Literal["adaptive"]


def contrasted(logits: Tensor, base: Tensor, alpha: Alpha) -> Tensor:
    """(V,) logits moved away from those of `base` (V,)."""
    return logits + (jensen_shannon(logits, base) if alpha == "adaptive" else alpha) * (logits - base)


def check_alpha(name: str, alpha: object) -> None:
    """Refuse what is no strength of a contrast.

    Raises:
        SettingsError: it is negative, not finite, or a text other than "adaptive".
    """
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool) and math.isfinite(alpha) and alpha >= 0
    if not number and alpha != "adaptive":
        raise SettingsError(
            f'`{name}` must be a number that is not negative, got {alpha!r}; the papers have 0.5 and "adaptive"'
        )


class Contrast:
    """The rule of a row with the setting `contrast`.

    Args:
        alpha: strength, at least 0; 0 changes nothing.
    """

    def __init__(self, alpha: Alpha) -> None:
        self._alpha = alpha

    def __call__(self, logits: Tensor, base: Tensor, _tokens: Sequence[int]) -> Tensor:
        """(V,) with the memory, (V,) without -> (V,)."""
        return contrasted(logits, base, self._alpha)
