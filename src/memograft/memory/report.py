"""`MemoryReport`: what memorizing did to the model, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memograft.notebook import table_html

__all__ = ["MemoryReport"]


@dataclass(frozen=True)
class MemoryReport:
    """What memorizing did.

    Attributes:
        steps: optimiser steps taken; 0 if there was nothing to memorize or the memory was reused.
        loss_before: mean cross-entropy of the context tokens in nats, exact, before memorizing.
        loss_after: the same after memorizing.
        kl: mean KL(base || memorized) over the context tokens in nats. With a `shortlist`, estimated to a few percent.
        rolled_back: whether the memory was discarded, so that the base model answers; see `reason`.
        reason: why the memory was rolled back, or why nothing was memorized.
        losses: CE + beta KL before each step (over the shortlist, if there is one). Empty for composed memories, whose
            `steps` are the sum over the parts that were trained.
        seconds: time that memorizing took, for the whole batch.
        documents: ids of the memorized documents.
        left_out: ids of the other documents: not relevant, in conflict with a higher-ranked one, or (with `compose`)
            rolled back. They stay in the prompt.
        relevance: of each document to the question, in the order of the prompt (1 at most); empty if it was not judged.
        disagree: pairs of ids of relevant documents that contradict each other about the question, higher-ranked first.
        tokens: ids of the context tokens.
        token_losses_before: cross-entropy of each context token in nats.
        token_losses_after: the same after memorizing.
        settings: all settings, with their values for "auto".
        reused: whether a kept memory was used, so that nothing was trained.
        warnings: what failed without preventing an answer, such as the choice of documents or one composed memory.
        id: of the memory, if it was kept or reused.
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
        """Make the report of a finished run. It is rolled back if a loss is not finite or rose, or if the KL is too
        large."""
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

    def _repr_html_(self) -> str:
        rows = (
            [("memory", str(self.settings.get("kind", "fastmem")))] if self.settings else []
        )  # FastMem's have no kind
        rows.append(("memorized", self._memorized()))
        if self.left_out:
            rows.append(("left out", ", ".join(self.left_out)))
        if self.relevance:
            rows.append(("relevance", ", ".join(f"{value:.2f}" for value in self.relevance)))
        if not math.isnan(self.loss_before):
            rows.append(("loss", f"{self.loss_before:.2f} → {self.loss_after:.2f} nats per token"))
        rows += [("reason", self.reason)] if self.reason else []
        return table_html([*rows, *(("warning", warning) for warning in self.warnings)])

    def _memorized(self) -> str:
        """Which documents were memorized, and how."""
        if self.rolled_back:
            return "no, rolled back"
        how = "reused" if self.reused else f"{self.steps} steps"
        return f"{', '.join(self.documents)} ({how})" if self.documents else "nothing"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
