"""Batch processors: change the logits of several rows in one call, given the hidden states.

A new one is a subclass in this folder, passed in a request's `processors`. Rows with equal processors (same hash) are
processed together, and the result of a row must not depend on the others. Batch processors act on the model's output,
after a memory's rules and before all other logits processors.

    x ──> last FFN ──> ... ──> h ──> head ──> logits (B, V) ──> [rows of processor 1] [rows of 2] ... ──> logits

Hidden states are recorded by hooks, which exist only inside `caught` and act only in the thread that entered it. The
batch may have extra rows after the first B (`model/base_logits.py`), which are ignored.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from memograft.documents import Source
from memograft.model.backbone import Backbone

__all__ = ["BatchProcessor", "Moved", "States", "Steps", "caught", "entries", "nothing", "process"]


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


class States:
    """The hidden states (N, D) of the last pass of this thread, by place; see `caught`."""

    def __init__(self, rows: int) -> None:
        self._rows, self._owner = rows, threading.current_thread()
        self.at: dict[str, Tensor] = {}

    def catch(self, place: str) -> Callable[..., None]:
        """A hook before the module of `place`."""

        def hook(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            if threading.current_thread() is self._owner:
                x = args[0] if args else next(iter(kwargs.values()))
                self.at[place] = x.reshape(self._rows, -1, x.shape[-1])[:, 0]  # OPT flattens B and T

        return hook


@contextmanager
def caught(backbone: Backbone, places: Iterable[str], rows: int) -> Iterator[States]:
    """Inside, each pass of this thread over `rows` rows records the states of its first tokens at `places`."""
    states, modules = States(rows), {"ffn_input": backbone.ffn[0], "head_input": backbone.head}
    handles = [modules[place].register_forward_pre_hook(states.catch(place), with_kwargs=True) for place in set(places)]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


Steps = list[tuple[list[int], Callable[[NDArray[np.int64]], Moved]]]


def process(
    logits: Tensor, states: Mapping[str, Tensor], processors: Mapping[int, BatchProcessor]
) -> tuple[dict[int, Exception], Steps]:
    """Change the logits (B, V) of rows that have a processor, in place.

    Args:
        logits: of all rows.
        states: hidden states of all rows (B, D), by place.
        processors: by row.

    Returns:
        Errors by row, because a processor's error concerns its rows only. And for each group its rows, with the
        function from their chosen tokens (G,) to the entries that contributed.
    """
    groups: dict[BatchProcessor, list[int]] = {}
    for row, processor in processors.items():
        groups.setdefault(processor, []).append(row)
    errors: dict[int, Exception] = {}
    steps = []
    for processor, rows in groups.items():
        try:
            own, moved = processor(states[processor.place][rows], logits[rows])
            logits[rows] = own
            steps.append((rows, moved))
        except Exception as error:
            errors |= dict.fromkeys(rows, error)
    return errors, steps


def entries(row: int, moved: Moved) -> list[tuple[int, int, float]]:
    """The (source, position, probability) of what contributed to a row's token, most first."""
    found: dict[tuple[int, int], float] = {}
    for n in np.flatnonzero(moved.rows == row):
        entry = int(moved.sources[n]), int(moved.positions[n])  # several heads may find the same entry
        found[entry] = found.get(entry, 0.0) + float(moved.probabilities[n])
    return [(*entry, p) for entry, p in sorted(found.items(), key=lambda item: -item[1])]
