"""A processor: what a row's scores become before a token is chosen. transformers' LogitsProcessors are such."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Processor"]


@runtime_checkable
class Processor(Protocol):
    """Acts on the scores of one row; those of a row act one after the other."""

    def __call__(self, ids: Tensor, scores: Tensor, /) -> Tensor:
        """(1, T) the row's tokens so far, without padding; (1, V) scores -> (1, V)."""
        ...
