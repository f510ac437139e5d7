"""Batch processors: change the logits of several rows in one call, given the hidden states.

A new one is a subclass in this folder, passed in a request's `processors`. Rows with equal processors (same hash) are
processed together, and the result of a row must not depend on the others. Batch processors act on the model's output,
after a memory's rules and before all other logits processors.

    x ──> last FFN ──> ... ──> h ──> head ──> logits (B, V) ──> [rows of processor 1] [rows of 2] ... ──> logits

Hidden states are recorded by hooks, which exist only inside `BatchProcessors.caught` and act only in the thread that
entered it. The batch may have extra rows after the first B (`model/base_logits.py`), which are ignored.
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
    """M entries that raised the probability of chosen tokens of G rows: row, source, position in it, amount (M,)."""

    rows: NDArray[np.int64]
    sources: NDArray[np.signedinteger]
    positions: NDArray[np.signedinteger]
    probabilities: NDArray[np.float64]


def nothing(_tokens: NDArray[np.int64]) -> Moved:
    """The `Moved` of a step in which no logits were changed."""
    none = np.zeros(0, np.int64)
    return Moved(none, none, none, np.zeros(0))


class BatchProcessor(ABC):
    """Changes the logits of G rows, using the hidden states that they were computed from."""

    @property
    @abstractmethod
    def place(self) -> Literal["ffn_input", "head_input"]:
        """Which hidden states it needs."""

    @abstractmethod
    def check(self, fingerprint: str) -> None:
        """Refuse a model that it was not made for, before anything is computed."""

    @abstractmethod
    def __call__(self, states: Tensor, logits: Tensor) -> tuple[Tensor, Callable[[NDArray[np.int64]], Moved]]:
        """(G, D), (G, V) float32 -> (G, V), and a function from the chosen tokens (G,) to the entries that contributed.

        Rows that are not changed must keep their logits bit for bit. The inputs must not be modified.
        """

    @abstractmethod
    def source(self, number: int) -> Source:
        """The source with that number in `Moved`."""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if cls.__hash__ is None:
            raise TypeError(f"a batch processor must be hashable, and {cls.__name__} is not; define __hash__")


class BatchProcessors:
    """The batch processors of B rows.

    Args:
        processors: one for each row, or None.
        extra: number of rows after these B that pass through the FFN and the head with them.
    """

    def __init__(self, processors: Sequence[BatchProcessor | None], extra: int) -> None:
        self._rows = len(processors) + extra
        self._groups: dict[BatchProcessor, list[int]] = {}
        for row, processor in enumerate(processors):
            if processor is not None:
                self._groups.setdefault(processor, []).append(row)
        self._states: dict[str, Tensor] = {}
        self._steps: list[tuple[list[int], Callable[..., Moved]]] = []  # of the current token
        self._moved: list[list[tuple[list[int], Moved]]] = []  # for each token

    @contextmanager
    def caught(self, backbone: Backbone) -> Iterator[None]:
        """Inside, each forward pass of this thread records the rows' hidden states that a processor needs."""
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
        """Change the logits (B, V) in place. Returns errors by row: a processor's error concerns its rows only."""
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
        """Record the entries that contributed to the chosen tokens (B,)."""
        chosen = tokens.cpu().numpy()
        self._moved.append([(rows, moved(chosen[rows])) for rows, moved in self._steps])
        self._steps = []

    def of(self, row: int) -> list[list[tuple[int, int, float]]]:
        """For each token of a row, the (source, position, probability) of the entries that contributed."""
        tokens = []
        for steps in self._moved:
            found: dict[tuple[int, int], float] = {}
            for rows, moved in steps:
                for n in np.flatnonzero(moved.rows == rows.index(row)) if row in rows else ():
                    entry = int(moved.sources[n]), int(moved.positions[n])  # several heads may find the same entry
                    found[entry] = found.get(entry, 0.0) + float(moved.probabilities[n])
            tokens.append([(*entry, p) for entry, p in sorted(found.items(), key=lambda item: -item[1])])
        return tokens
