"""Batch processors at work: hidden states of the rows, rows of equal processors together, and what moved each token.

    x ──> last FFN ──> ... ──> h ──> head ──> logits (B, V) ──> [rows of processor 1] [rows of 2] ... ──> logits

Hidden states are caught by hooks that exist only inside `caught` and act only in the thread that entered it. Behind the
B rows of the batch others may pass the same modules (`_beside.py`); they are not looked at.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn

from memograft.backbone import Backbone
from memograft.processors.batch import BatchProcessor, Moved

__all__ = ["Steering"]


class Steering:
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
            def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
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
