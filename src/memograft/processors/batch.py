"""A batch processor: what acts on the logits of all rows that ask for the same, at once.

A new one is a subclass in this folder, handed in with a request's `processors`. Rows whose processors are equal and
hash alike come together; each row must get what it would get alone. They act on the model's output, after a memory's
rules and before any other logits processor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from memograft.request import Source

__all__ = ["BatchProcessor", "Moved", "nothing"]


class Moved(NamedTuple):
    """M entries that made the chosen tokens of G rows likelier: row, source, place in it (M,), and by how much."""

    rows: NDArray[np.int64]
    sources: NDArray[np.signedinteger[Any]]
    positions: NDArray[np.signedinteger[Any]]
    probabilities: NDArray[np.float64]


def nothing(_tokens: NDArray[np.int64]) -> Moved:
    """What moved the tokens of a step at which nothing was changed."""
    none = np.zeros(0, np.int64)
    return Moved(none, none, none, np.zeros(0))


class BatchProcessor(ABC):
    """Acts on the logits of G rows, knowing the hidden states they were made from."""

    @property
    @abstractmethod
    def place(self) -> Literal["ffn_input", "head_input"]:
        """Where the hidden states are taken."""

    @abstractmethod
    def check(self, fingerprint: str) -> None:
        """Refuse a model that it was not made for, before anything is computed."""

    @abstractmethod
    def __call__(self, states: Tensor, logits: Tensor) -> tuple[Tensor, Callable[[NDArray[np.int64]], Moved]]:
        """(G, D), (G, V) float32 -> (G, V), and what tells, once tokens (G,) are chosen, what moved them.

        Rows that it leaves alone keep their logits bit for bit. What is handed in must not be written to.
        """

    @abstractmethod
    def source(self, number: int) -> Source:
        """The source of that number in `Moved`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__hash__ is None:
            raise TypeError(f"a batch processor must be hashable, and {cls.__name__} is not; define __hash__")
