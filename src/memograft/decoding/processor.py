"""The protocol of a logits processor for one row. transformers' LogitsProcessors implement it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Processor"]


@runtime_checkable
class Processor(Protocol):
    """Changes the scores of one row. The processors of a row are applied in order."""

    def __call__(self, ids: Tensor, scores: Tensor, /) -> Tensor:
        """(1, T) the row's tokens so far, without padding; (1, V) scores -> (1, V)."""
        ...
