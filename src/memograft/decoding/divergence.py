"""How far two distributions of the next token are apart."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["jensen_shannon"]


def jensen_shannon(one: Tensor, other: Tensor) -> Tensor:
    """(..., V), (..., V) logits -> (...) nats: KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2.

    It is between 0 and log 2, and finite where a probability is 0.
    """
    p, q = one.softmax(-1), other.softmax(-1)
    m = (p + q) / 2
    both = torch.special.entr(m) - (torch.special.entr(p) + torch.special.entr(q)) / 2  # entr is -p log p, 0 at 0
    apart: Tensor = both.sum(-1).clamp_min(0)
    return apart
