"""A batch processor: what acts on the logits of all rows that ask for the same, at once.

A new one is a subclass in this folder, handed in with a request's `processors`. Rows whose processors are equal and
hash alike come together; each row must get what it would get alone. They act on the model's output, after a memory's
rules and before any other logits processor.

    x ──> last FFN ──> ... ──> h ──> head ──> logits (B, V) ──> [rows of processor 1] [rows of 2] ... ──> logits

Hidden states are caught by hooks that exist only inside `BatchProcessors.caught` and act only in the thread that
entered it. Behind the B rows of the batch others may pass the same modules (`model/base_logits.py`); they are not
looked at.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from memograft.documents import Source
from memograft.model.backbone import Backbone

__all__ = ["BatchProcessor", "BatchProcessors", "Moved", "nothing"]


class Moved(NamedTuple):
    """M entries that made the chosen tokens of G rows likelier: row, source, place in it (M,), and by how much."""

    rows: NDArray[np.int64]
    sources: NDArray[np.signedinteger]
    positions: NDArray[np.signedinteger]
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

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if cls.__hash__ is None:
            raise TypeError(f"a batch processor must be hashable, and {cls.__name__} is not; define __hash__")


class BatchProcessors:
    """The batch processors of B rows.

    Args:
        processors: one for each row, or None.
        extra: rows behind these B that pass the FFN and the head with them.
    """

    def __init__(self, processors: Sequence[BatchProcessor | None], extra: int) -> None:
        self._rows = len(processors) + extra
        self._groups: dict[BatchProcessor, list[int]] = {}
        for row, processor in enumerate(processors):
            if processor is not None:
                self._groups.setdefault(processor, []).append(row)
        self._states: dict[str, Tensor] = {}
        self._steps: list[tuple[list[int], Callable[..., Moved]]] = []  # of the token that is being chosen
        self._moved: list[list[tuple[list[int], Moved]]] = []  # for each token

    @contextmanager
    def caught(self, backbone: Backbone) -> Iterator[None]:
        """Inside, each forward pass of this thread leaves the rows' hidden states behind, wherever they are wanted."""
        owner, places = threading.get_ident(), {processor.place for processor in self._groups}
        modules = {"ffn_input": backbone.ffn[0], "head_input": backbone.head}

        def catch(place: str) -> Callable[..., None]:
            def hook(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
                if threading.get_ident() == owner:
                    x = args[0] if args else next(iter(kwargs.values()))
                    self._states[place] = x.reshape(self._rows, -1, x.shape[-1])[:, -1]  # OPT flattens B and T

            return hook

        handles = [modules[place].register_forward_pre_hook(catch(place), with_kwargs=True) for place in places]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def apply(self, logits: Tensor, done: Sequence[bool]) -> dict[int, Exception]:
        """Change the logits (B, V) in place; returns the errors by row: one in a processor is that of its rows."""
        errors: dict[int, Exception] = {}
        self._steps = []
        for processor, members in self._groups.items():
            rows = [row for row in members if not done[row]]
            if not rows:
                continue
            try:
                own, moved = processor(self._states[processor.place][rows], logits[rows])
                logits[rows] = own
                self._steps.append((rows, moved))
            except Exception as error:
                errors |= dict.fromkeys(rows, error)
        return errors

    def choose(self, tokens: Tensor) -> None:
        """Note what moved the tokens (B,) that were chosen."""
        chosen = tokens.cpu().numpy()
        self._moved.append([(rows, moved(chosen[rows])) for rows, moved in self._steps])
        self._steps = []

    def of(self, row: int) -> list[list[tuple[int, int, float]]]:
        """For each token of a row: (source, position, probability) of what moved it."""
        tokens = []
        for steps in self._moved:
            found: dict[tuple[int, int], float] = {}
            for rows, moved in steps:
                for n in np.flatnonzero(moved.rows == rows.index(row)) if row in rows else ():
                    entry = int(moved.sources[n]), int(moved.positions[n])  # several heads may find the same
                    found[entry] = found.get(entry, 0.0) + float(moved.probabilities[n])
            tokens.append([(*entry, p) for entry, p in sorted(found.items(), key=lambda item: -item[1])])
        return tokens
