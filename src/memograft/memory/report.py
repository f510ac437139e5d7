"""`MemoryReport`: what memorizing did to the model, in numbers. Plain data; knows nothing of how it was done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["MemoryReport"]


@dataclass(frozen=True)
class MemoryReport:
    """What memorizing did.

    Attributes:
        steps: optimiser steps taken; 0 if there was nothing to memorize or the memory was reused.
        loss_before: mean cross-entropy of the context tokens in nats, exact, before memorizing.
        loss_after: the same after it.
        kl: mean KL(base || memorized) over the context tokens in nats.
        rolled_back: the answer comes from the base model after all; `reason` says why.
        reason: why it was rolled back, or why nothing was memorized.
        losses: CE + beta KL that each step started from (over the shortlist, where there is one). Joined memories have
            none; their `steps` are those of all parts that were made for them.
        seconds: time memorizing took, for the whole batch it ran in.
        documents: ids of the documents memorized.
        left_out: ids of those that were not: about something else, at odds with one that ranks higher, or memorized by
            itself and rolled back. They stand in the prompt all the same.
        relevance: how much each document of the prompt, in its order, is about the question (1 at most); empty where
            that was not asked for or cannot be judged.
        disagree: pairs of ids of relevant documents that contradict each other in what is asked, higher-ranked first.
        tokens: ids of the context tokens.
        token_losses_before: cross-entropy of each context token in nats.
        token_losses_after: the same after memorizing.
        settings: everything that was in force.
        reused: it was made before and kept: nothing was trained.
        warnings: what could not be done on the way, such as choosing documents for want of memory, or memorizing one.
        id: of the memory, where one was kept or reused.
    """

    steps: int = 0
    loss_before: float = math.nan
    loss_after: float = math.nan
    kl: float = 0.0
    rolled_back: bool = False
    reason: str | None = None
    losses: tuple[float, ...] = ()
    seconds: float = 0.0
    documents: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    relevance: tuple[float, ...] = ()
    disagree: tuple[tuple[str, str], ...] = ()
    tokens: tuple[int, ...] = ()
    token_losses_before: tuple[float, ...] = ()
    token_losses_after: tuple[float, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    reused: bool = False
    warnings: tuple[str, ...] = ()
    id: str = ""

    @classmethod
    def of(
        cls,
        *,
        before: Sequence[float],
        after: Sequence[float],
        tokens: Sequence[int],
        kl: float,
        losses: Sequence[float],
        seconds: float,
        settings: Mapping[str, Any],
        max_kl: float,
    ) -> MemoryReport:
        """Judge a finished run: NaN, a loss that rose, or a KL beyond the bound are rolled back."""
        loss_before, loss_after = _mean(before), _mean(after)
        reason = None
        if not all(map(math.isfinite, (loss_before, loss_after, kl, *losses))):
            reason = "a loss was not a finite number; try a smaller `learning_rate` or a wider dtype"
        elif loss_after > loss_before:
            reason = f"the loss rose from {loss_before:.3f} to {loss_after:.3f}; try a smaller `learning_rate`"
        elif kl > max_kl:
            reason = f"the KL of {kl:.3f} is beyond `max_kl` = {max_kl:g}; try fewer `steps` or a larger `kl_weight`"
        return cls(
            steps=len(losses),
            loss_before=loss_before,
            loss_after=loss_after,
            kl=kl,
            rolled_back=reason is not None,
            reason=reason,
            losses=tuple(losses),
            seconds=seconds,
            tokens=tuple(tokens),
            token_losses_before=tuple(before),
            token_losses_after=tuple(after),
            settings=settings,
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
