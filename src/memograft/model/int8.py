"""Keys and values in 8 bits each: MXINT8 of the Open Compute Project's microscaling formats."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Int8", "blocks_of"]

_BLOCK = 32  # numbers with a common exponent
_LEAST = -24  # exponent of the least number of float16


@dataclass(frozen=True)
class Int8:
    """Numbers of 8 bits, of which 32 neighbours share a power of two.

    So each of them is a number of bfloat16, float16 and float32 too: what was rounded once is rounded no further.

    Attributes:
        steps: (..., d) int8.
        exponents: (..., b) int8, of the b blocks of d numbers.
    """

    steps: Tensor
    exponents: Tensor

    @classmethod
    def of(cls, numbers: Tensor) -> Int8:
        """The nearest to these numbers (..., d)."""
        blocks = numbers.float().reshape(*numbers.shape[:-1], blocks_of(numbers.shape[-1]), -1)
        largest, exponents = torch.frexp(blocks.abs().amax(-1))
        exponents = (exponents - 7 + (largest * 128 >= 127.5)).clamp(_LEAST, 127)  # 127 steps are the most
        steps = torch.ldexp(blocks, -exponents[..., None]).round()
        return cls(steps.view(numbers.shape).char(), exponents.char())

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """The numbers (..., d)."""
        blocks = self.steps.float().view(*self.exponents.shape, -1)
        return torch.ldexp(blocks, self.exponents[..., None].int()).view(self.steps.shape).to(dtype)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.steps.nbytes + self.exponents.nbytes

    def __len__(self) -> int:
        return len(self.steps)


def blocks_of(width: int) -> int:
    """How many blocks of so many numbers have exponents of their own."""
    return width // _BLOCK if width % _BLOCK == 0 else 1
