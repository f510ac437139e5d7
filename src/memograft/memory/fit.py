"""The loop of a training that can be interrupted, and continues from its last checkpoint with the same result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from memograft.errors import SettingsError
from memograft.memory import checkpoint
from memograft.model.backbone import Backbone
from memograft.model.key_bias import attention
from memograft.storage.disk import JsonObject

__all__ = ["Progress", "Training", "fit", "frozen"]


@dataclass(frozen=True)
class Training:
    """Settings of a run; with seed and samples they determine the result.

    Attributes:
        window: W, tokens of a document at most; longer ones have several parts.
        steps: optimiser steps.
        groups: documents (with their questions) in a step; samples with the same documents are one group.
        questions: of a group in a step, at most.
        rank: of the LoRA.
        learning_rate: of AdamW, at its highest.
        warmup: share of the steps in which it rises; it falls linearly to zero after them.
        on_documents: the LoRA also acts on the tokens that are encoded, and not on learned tokens only.
        accumulate: passes of a step, each with a part of its groups.
        seed: of initial weights and batches.
    """

    window: int = 256
    steps: int = 1000
    groups: int = 32
    questions: int = 4
    rank: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.03
    on_documents: bool = False
    accumulate: int = 1
    seed: int = 0

    def check(self, counts: Iterable[str] = (), shares: Iterable[str] = (), weights: Iterable[str] = ()) -> None:
        """Check the ranges of all settings, and of those of a subclass.

        Raises:
            SettingsError: a count is less than 1, a share not between 0 and 1, or a weight less than 0.
        """
        for name in ("window", "steps", "groups", "questions", "rank", "accumulate", *counts):
            if getattr(self, name) < 1:
                raise SettingsError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        for name in ("warmup", *shares):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"`{name}` must be between 0 and 1, got {getattr(self, name)}")
        for name in weights:
            if not getattr(self, name) >= 0:
                raise SettingsError(f"`{name}` must be at least 0, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise SettingsError(f"`learning_rate` must be more than 0, got {self.learning_rate}")

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        rise = max(1.0, self.warmup * self.steps)
        return self.learning_rate * min((step + 1) / rise, (self.steps - step) / max(1.0, self.steps - rise), 1.0)


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: steps done.
        tokens: that were read: of documents, learned tokens, questions and answers, without padding.
        losses: of each step.
        scores: of the held-out samples: step, and what was measured.
    """

    step: int = 0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    scores: list[JsonObject] = field(default_factory=list)


def fit(
    parameters: Mapping[str, Tensor],
    gradients: Callable[[int], tuple[float, int]],
    settings: Training,
    folder: Path,
    stated: JsonObject,
    *,
    scored: Callable[[], JsonObject] | None,
    begin: Callable[[], None] | None = None,
    write: Callable[[Progress], None],
    every: int,
    stop_at: int | None = None,
    progress: bool = True,
) -> Progress:
    """Train parameters to the end, or to step `stop_at`.

    Args:
        parameters: by name.
        gradients: adds up the gradients of a step; returns its loss and how many tokens it read.
        settings: the steps and their learning rates.
        folder: of the checkpoint. If it has one of the same run, the run continues there.
        stated: what determines the result.
        scored: measures held-out samples every `every` steps, and at the end.
        begin: sets the parameters before the first step; not called if the run continues.
        write: writes what is trained, after that.
        every: steps between checkpoints.
        stop_at: stop at this step; a later call continues.
        progress: whether to show a progress bar.

    Raises:
        SettingsError: the checkpoint has other settings, or the loss is not finite.
        MemoryFormatError: the checkpoint is damaged.
    """
    optimiser = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0)
    done = checkpoint.read(folder, stated, parameters, optimiser)
    state = Progress(**done) if done is not None else Progress()
    if done is None and begin is not None:
        begin()
    last = settings.steps if stop_at is None else min(stop_at, settings.steps)
    bar = tqdm(range(state.step, last), initial=state.step, total=settings.steps, disable=not progress)
    for step in bar:
        began = time.perf_counter()
        for group in optimiser.param_groups:
            group["lr"] = settings.rate(step)
        loss, tokens = gradients(step)
        if not math.isfinite(loss):
            raise SettingsError(
                f"the loss must be finite, got {loss} at step {step}; continue with a smaller `learning_rate` in "
                "another folder"
            )
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        state.step, state.tokens = step + 1, state.tokens + tokens
        state.losses.append(loss)
        bar.set_postfix(loss=f"{loss:.3f}", tokens_s=f"{tokens / (time.perf_counter() - began):.0f}")
        if state.step % every == 0 or state.step == last:
            if scored is not None:
                state.scores.append({"step": state.step, **scored()})
                bar.write(str(state.scores[-1]))
            write(state)  # first: a run that is killed here does these steps again
            checkpoint.write(folder, stated, parameters, optimiser, asdict(state))
    return state


@contextmanager
def frozen(backbone: Backbone) -> Iterator[None]:
    """Inside, the model's own weights get no gradients, which would cost as much as those of activations.

    In bfloat16 on a CPU its attention is eager, with which a step takes less time than with torch's fused kernel.
    """
    model, kernel = backbone.model, attention(backbone)
    wanted = [p for p in model.parameters() if p.requires_grad]
    eager = backbone.device.type == "cpu" and model.dtype == torch.bfloat16 and kernel == "sdpa"
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        if eager:
            model.set_attn_implementation("eager")
        yield
    finally:
        if eager:
            model.set_attn_implementation(kernel)
        for parameter in wanted:
            parameter.requires_grad_(True)
