"""One row of a decoding batch: what its request asks for, and its tokens so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from memograft.decoding.batch_processor import BatchProcessor, Moved
from memograft.decoding.cad import Cad
from memograft.decoding.dola import Dola
from memograft.decoding.processor import Processor
from memograft.decoding.rule import Rule
from memograft.decoding.sampling import Sampling
from memograft.model.adapter import Adapter

__all__ = ["Row"]


@dataclass(eq=False)
class Row:
    """A request's row, its state and its results.

    Attributes:
        sampling: how its tokens are chosen.
        max_new_tokens: limit, already reduced to what fits the window.
        adapter: its memory, or None for the base model.
        rules: how its logits with and without the memory are combined; not used without a memory.
        cad: contrasts the prompt with the same one without documents, or None.
        dola: contrasts the last layer with an earlier one, or None.
        batch: its batch processor, which acts after the rules, `cad` and `dola`; rows with equal ones share a call.
        processors: its own logits processors, called with (1, T) ids without padding and (1, V).
        on_tokens: called after each token, with all new tokens so far.
        on_end: called with the row when it is done, while other rows may continue.
        given_up: asked before each token; True cancels the row.
        logprobs: number of most likely tokens to report for each new token; None reports nothing.
        tokens: new tokens, without an end token.
        chances: for each new token its log-probability (), and ids and log-probabilities of the most likely tokens.
        moved: for each new token, the row's number in `Moved` and the entries of its batch processor; see `entries`.
        finish_reason: "" while it runs.
        error: what ended it early.
    """

    sampling: Sampling
    max_new_tokens: int
    adapter: Adapter | None = None
    rules: Sequence[Rule] = ()
    cad: Cad | None = None
    dola: Dola | None = None
    batch: BatchProcessor | None = None
    processors: Sequence[Processor] = ()
    on_tokens: Callable[[Sequence[int]], None] | None = None
    on_end: Callable[[Row], None] = lambda _: None
    given_up: Callable[[], bool] = lambda: False
    logprobs: int | None = None
    tokens: list[int] = field(default_factory=list)
    chances: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    moved: list[tuple[int, Moved]] = field(default_factory=list)
    finish_reason: Literal["", "stop", "length"] = ""
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return bool(self.finish_reason) or self.error is not None

    @property
    def ruled(self) -> bool:
        """Whether it also needs the base model's logits."""
        return bool(self.rules) and self.adapter is not None
