"""Train the memories of a batch (FastMem, arXiv 2406.16069): fit the last FFN to each context, close to the base model.

    L(phi) = mean_t CE(p_phi(. | c_<t), c_t) + beta * mean_t KL(p_0(. | c_<t) || p_phi(. | c_<t))    (paper, section 3)

The loop runs on rows of the prefill, for all requests of a batch at once. Each request has its own weights, loss and
gradient norm, so its result does not depend on the batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from memograft.memory.fastmem.loss import ALL, Objective
from memograft.memory.fastmem.rows import TrainingRows
from memograft.memory.fastmem.settings import Training
from memograft.memory.report import MemoryReport
from memograft.model.adapter import Adapter, applied, dense_weights, replaced
from memograft.model.backbone import Backbone, linear_shape
from memograft.model.gradients import stand_ins
from memograft.model.repeated import Repeated

__all__ = ["Made", "Weights", "judged", "memorize"]

Made = tuple[Adapter | None, MemoryReport]

_SHRINKS = 4  # attempts to reduce the KL to the target
_SLACK = 0.05  # relative excess over the target that is accepted


class Weights(Protocol):
    """Changed weights for each of B contexts."""

    def active(self, part: slice = ALL) -> AbstractContextManager[None]:
        """Context manager in which the changed weights of these blocks are used."""

    def adapters(self) -> list[Adapter]:
        """All B as adapters, which are not changed afterwards."""


def memorize(
    backbone: Backbone,
    rows: TrainingRows,
    settings: Training,
    *,
    cancelled: Callable[[], bool] = lambda: False,
    progress: bool = False,
) -> list[Made]:
    """Memorize B contexts with the same settings. The adapter is None if the memory was rolled back.

    Raises:
        UnsupportedModelError: see `Training.check`.
    """
    settings = settings.resolved()
    settings.check(backbone)
    if settings.adapter == "full" and len(rows.lengths) > 1:  # a batch would need one copy of the FFN per row
        singles = (rows.single(n) for n in range(len(rows.lengths)))
        return [memorize(backbone, one, settings, cancelled=cancelled, progress=progress)[0] for one in singles]
    assert settings.steps != "auto"
    assert settings.learning_rate != "auto"
    assert settings.target_kl != "auto"
    assert settings.shortlist != "auto"
    started, count = time.perf_counter(), len(rows.lengths)
    objective = Objective(backbone, rows, settings.kl_weight, settings.shortlist)
    lora = settings.adapter == "lora"
    weights = (
        _LoRA(backbone, settings, rows, [objective.x[part] for part in objective.parts]) if lora else _Full(backbone)
    )
    optimiser = torch.optim.AdamW(weights.leaves, settings.learning_rate, weight_decay=settings.weight_decay)
    limit = math.inf if settings.target_kl is None else settings.target_kl
    losses: list[list[float]] = [[] for _ in range(count)]  # per row, before each step
    for _ in tqdm(range(settings.steps), desc="memorizing", disable=not progress, leave=False):
        if cancelled():
            break
        loss, kl, gradients = _gradients(weights, objective)
        there = kl >= limit
        if bool(there.all()):
            break
        for row in (~there).nonzero().flatten().tolist():
            losses[row].append(float(loss[row]))
        for leaf, gradient in zip(weights.leaves, _clipped(gradients, settings.clip_norm, count), strict=True):
            leaf.grad = gradient
        with weights.held(there):
            optimiser.step()
    if settings.target_kl is not None:
        _shrink(weights, objective, settings.target_kl)
    cancelled()  # others may get a token before the losses over the vocabulary, which are a large part of the work
    return judged(weights, objective, rows, settings, losses, started)


def judged(
    weights: Weights,
    objective: Objective,
    rows: TrainingRows,
    settings: Training,
    losses: Sequence[Sequence[float]],
    started: float,
) -> list[Made]:
    """Measure each row's effect and return its adapter, or None if it must be rolled back, and its report.

    `losses` are those of each row's steps; `started` is the time (`time.perf_counter`) at which the batch began.
    """
    assert settings.max_kl != "auto"
    after, kl = objective.measured(weights.active)
    seconds = time.perf_counter() - started
    results: list[Made] = []
    for n, (own, adapter) in enumerate(zip(rows.texts, weights.adapters(), strict=True)):
        report = MemoryReport.of(
            before=objective.before[own].tolist(),
            after=after[own].tolist(),
            tokens=rows.targets[own].tolist(),
            kl=float(kl[n]),
            losses=losses[n],
            seconds=seconds,
            settings=asdict(settings),
            max_kl=settings.max_kl,
        )
        results.append((None if report.rolled_back else adapter, report))
    return results


def _gradients(weights: _LoRA | _Full, objective: Objective) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Loss and KL of each context, (B,) both, and the gradient of each leaf, summed over the objective's parts."""
    found: list[list[Tensor]] = []
    for part in objective.parts:
        with torch.enable_grad(), weights.active(part):
            loss, kl = objective.loss(part)
            found.append([loss.detach(), kl.detach(), *torch.autograd.grad(loss.sum(), weights.leaves)])
    loss, kl, *gradients = (
        torch.stack(each).sum(0) if len(found) > 1 else each[0] for each in zip(*found, strict=True)
    )
    return loss, kl, gradients


def _shrink(weights: _LoRA | _Full, objective: Objective, limit: float) -> None:
    """Scale weights back whose last step exceeded the target; KL grows about as the square of the change."""
    for _ in range(_SHRINKS):
        kl = torch.zeros(0)
        for part in objective.parts:
            with torch.no_grad(), weights.active(part):
                own = objective.loss(part)[1]
            kl = own if part is objective.parts[0] else kl + own
        far = kl > limit * (1 + _SLACK)  # (B,); the other rows are not changed
        if not bool(far.any()):
            return
        weights.scale((limit / kl).sqrt().where(far, 1.0))


def _clipped(gradients: Sequence[Tensor], limit: float | None, rows: int) -> list[Tensor]:
    """Scale each row's gradient, over all leaves, to a norm of at most `limit` (as torch's clip_grad_norm_ does)."""
    if limit is None:
        return list(gradients)
    flat = torch.cat([g.reshape(rows, -1) for g in gradients], dim=1)
    scale = (limit / (flat.norm(dim=1) + 1e-6)).clamp_max(1.0)
    return [g * scale.reshape(-1, *[1] * (g.ndim - 1)) for g in gradients]


class _LoRA:
    """B adapters of rank R, trained together. Initialised as in PEFT (A random, B zero)."""

    def __init__(self, backbone: Backbone, settings: Training, rows: TrainingRows, inputs: Sequence[Tensor]) -> None:
        names = list(backbone.projections)
        self._backbone, self._names, self._blocks, count = backbone, names, rows.blocks, len(rows.lengths)
        generator = torch.Generator().manual_seed(settings.seed)
        self._stacked: dict[str, tuple[Tensor, Tensor]] = {}
        for name in names:
            inside, out = linear_shape(backbone.projections[name]) or (0, 0)
            device = next(backbone.projections[name].parameters()).device
            a = torch.empty(settings.rank, inside)
            torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
            b = torch.zeros(count, out, settings.rank, device=device)
            self._stacked[name] = (a.to(device).expand(count, -1, -1).clone().requires_grad_(), b.requires_grad_())
        self.leaves = [leaf for pair in self._stacked.values() for leaf in pair]
        # The input of a projection back to D depends on the changes of the other projections, so it needs a gradient.
        behind = [
            n
            for n in names
            if len(names) > 1 and (linear_shape(backbone.projections[n]) or (0, 0))[1] == backbone.width
        ]
        self._stand_ins, self._repeated = stand_ins(backbone, behind), Repeated(backbone, inputs)

    @contextmanager
    def active(self, part: slice = ALL) -> Iterator[None]:
        spread = {
            n: (self._blocks.spread(a, part), self._blocks.spread(b, part)) for n, (a, b) in self._stacked.items()
        }
        with applied(self._backbone, spread, stand_ins=self._stand_ins, repeated=self._repeated):
            yield

    @contextmanager
    def held(self, rows: Tensor) -> Iterator[None]:
        """Inside, an optimiser step does not change the adapters of these rows (B,)."""
        if not bool(rows.any()):
            yield
            return
        before = [leaf.detach().clone() for leaf in self.leaves]
        yield
        with torch.no_grad():
            for leaf, old in zip(self.leaves, before, strict=True):
                leaf[rows] = old[rows]

    @torch.no_grad()
    def scale(self, factors: Tensor) -> None:
        """Multiply each adapter's change by its factor (B,)."""
        for _, b in self._stacked.values():
            b *= factors[:, None, None].to(b)

    def adapters(self) -> list[Adapter]:
        rows = len(self.leaves[0])
        return [
            Adapter(
                {n: self._stacked[n][0][row].detach().clone() for n in self._names},
                {n: self._stacked[n][1][row].detach().clone() for n in self._names},
            )
            for row in range(rows)
        ]


class _Full:
    """The FFN's weights in float32, for one context."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._base = dense_weights(backbone, list(backbone.projections))
        self._weights = {name: w.clone().requires_grad_() for name, w in self._base.items()}
        self.leaves = list(self._weights.values())

    @contextmanager
    def active(self, _part: slice = ALL) -> Iterator[None]:
        with replaced(self._backbone, self._weights):
            yield

    @contextmanager
    def held(self, _rows: Tensor) -> Iterator[None]:
        """Does nothing: the loop ends when its only context is done."""
        yield

    @torch.no_grad()
    def scale(self, factors: Tensor) -> None:
        """Multiply the change of the weights by the one factor (1,)."""
        for name, weight in self._weights.items():
            weight.lerp_(self._base[name], 1 - float(factors[0]))

    def adapters(self) -> list[Adapter]:
        changes = {name: (w.detach() - self._base[name]) for name, w in self._weights.items()}
        return [Adapter.from_dense(changes, self._backbone.width)]
