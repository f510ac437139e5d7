"""Context-aware decoding: contrast the logits with those of the prompt without documents (arXiv 2305.14739).

    l = (1 + alpha) * l(documents, question) - alpha * l_0(question)                        (equation 3 of the paper)

l are the row's logits after its memory and rules. l_0 are the logits of the same model, with the same memory, for the
same conversation without documents, followed by the answer so far. An effect of the memory that does not depend on the
documents in the prompt cancels out. That conversation is another row of the batch (an echo, see `loop.py`), so the
weights are read once for both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from memograft.errors import SettingsError

__all__ = ["Cad"]


@dataclass(frozen=True)
class Cad:
    """A member of a request's `processors`. It acts after the memory and before all other processors; no memory is
    needed.

    Attributes:
        alpha: strength (paper: 0.5 for questions); 0 changes nothing.

    Raises:
        SettingsError: alpha is negative or not a number.

    Example:
        >>> from memograft import Engine, FastMem
        >>> engine = Engine.from_pretrained("tiny")
        >>> page = "The capital of Australia is Lisbon."
        >>> engine.answer("What is the capital of Australia?", [page], memory=FastMem(), processors=[Cad(0.5)]).text
        'The capital of Australia is Lisbon.'
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        good = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool) and math.isfinite(self.alpha)
        if not good or self.alpha < 0:
            raise SettingsError(f"`alpha` must be a number that is not negative, got {self.alpha!r}; the paper has 0.5")
