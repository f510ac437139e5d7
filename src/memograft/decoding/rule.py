"""The protocol of a rule: combines a row's distributions with and without its memory.

A new rule is a class with one method in this folder, and a line in `_rules` of `memory/fastmem/memory.py`. Both
distributions come from one forward pass (`model/base_logits.py`), so the second costs little (`benchmarks/gate.py`
measures it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

__all__ = ["Rule"]


class Rule(Protocol):
    """Combines the two distributions of a row's next token. The rules of a row are applied in order."""

    def __call__(self, logits: Tensor, base: Tensor, tokens: Sequence[int], /) -> Tensor:
        """(V,) with the memory, after earlier rules; (V,) of the base model; the answer so far -> (V,).

        Logits are float32 and finite, before any logits processor. The inputs must not be modified.
        """
        ...
