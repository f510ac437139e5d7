"""A rule: what a row with a memory says, of what it would say with the memory and without.

A new rule is a class with one method in this folder, and one line in `_rules` of `memory/fastmem/memory.py`. Both
distributions come from one forward pass (`model/base_logits.py`), so that asking for both costs little
(`benchmarks/gate.py` measures how much).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

__all__ = ["Rule"]


class Rule(Protocol):
    """Combines the two distributions of a row's next token; rules of a row act one after the other."""

    def __call__(self, logits: Tensor, base: Tensor, tokens: Sequence[int], /) -> Tensor:
        """(V,) with the memory, after the rules before; (V,) of the base model; the answer so far -> (V,).

        Logits are float32 and finite, before any logits processor. What is handed in must not be written to.
        """
        ...
