"""Exact cross-entropy and KL over the whole vocabulary, without gradient and without holding the logits of all rows.

    CE_t = z_t - l_t[c_t]        KL_t = sum_v p_t(v) (l_t[v] - l'_t[v]) + z'_t - z_t        z = logsumexp(l)

The head is applied to as many rows as make a fast matrix product, and what follows it to as few as fit in a CPU's
second-level cache: for a small model these elementwise passes cost as much as the product if each goes through memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from memograft.memory.fastmem.rows import TrainingRows
from memograft.model.backbone import Backbone, first

__all__ = ["Exact", "cross_entropy", "exact_losses", "head", "kl_divergence"]

# Numbers of logits: of one matrix product, and of one elementwise pass behind it.
_PRODUCT, _PASS, _ON_GPU = 1 << 24, 1 << 19, 1 << 26


@dataclass(frozen=True)
class Exact:
    """What a model predicts at N rows of B contexts.

    Attributes:
        losses: cross-entropy in nats (N,).
        normaliser: logsumexp of the logits (N,).
        mass: probability of each token, summed over the rows of each context (B, V); None if not asked for.
    """

    losses: Tensor
    normaliser: Tensor
    mass: Tensor | None


def head(backbone: Backbone, hidden: Tensor) -> Tensor:
    """(..., D) -> the head's output (..., V), before scale and cap, in the model's dtype."""
    return first(backbone.head(hidden)).to(hidden.device)


@torch.no_grad()
def cross_entropy(backbone: Backbone, hidden: Tensor, rows: TrainingRows, *, mass: bool) -> Exact:
    """One pass over the rows, from the input to the head (N, D)."""
    device = hidden.device
    losses, normaliser = (torch.empty(len(hidden), device=device) for _ in range(2))
    summed = torch.zeros(len(rows.lengths), backbone.vocabulary, device=device) if mass else None
    for context, own in enumerate(rows.slices):
        for part in _evenly(own, _size(backbone, _PRODUCT)):
            raw = head(backbone, hidden[part])
            for few in _evenly(part, _size(backbone, _PASS)):
                logits = backbone.finish(raw[few.start - part.start : few.stop - part.start])
                target, top = _at(logits, rows.targets[few]), logits.amax(-1)
                likely = logits.sub_(top[:, None]).exp_()
                total = likely.sum(-1)
                normaliser[few] = top + total.log()
                losses[few] = normaliser[few] - target
                if summed is not None:
                    summed[context].addmv_(likely.T, total.reciprocal())
            del raw  # before the next product, so that only one is held
    return Exact(losses, normaliser, summed)


@torch.no_grad()
def kl_divergence(backbone: Backbone, base: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """KL(base || other) of each row (N,), from the inputs to the head (N, D) and the normalisers (N,) of both."""
    (before, normaliser), (after, _) = base, other
    moved = torch.empty_like(normaliser)
    for part in _evenly(slice(0, len(moved)), _size(backbone, _PRODUCT // 2)):
        raw = head(backbone, torch.cat([before[part], after[part]])).chunk(2)
        for few in _evenly(part, _size(backbone, _PASS)):
            old, new = (backbone.finish(own[few.start - part.start : few.stop - part.start]) for own in raw)
            likely = (old - normaliser[few, None]).exp_()
            moved[few] = torch.linalg.vecdot(likely, old.sub_(new))
        del raw
    return moved + other[1] - normaliser


@torch.no_grad()
def exact_losses(backbone: Backbone, rows: TrainingRows) -> Tensor:
    """Cross-entropy of each row over the whole vocabulary with no adapter active: (N,), in nats."""
    hidden = backbone.hidden(rows.x[None], rows.residual[None])[0].to(rows.x.device)
    return cross_entropy(backbone, hidden, rows, mass=False).losses


def _at(scores: Tensor, targets: Tensor) -> Tensor:
    """(M, V), (M,) -> (M,)"""
    return scores.gather(-1, targets[:, None])[:, 0]


def _size(backbone: Backbone, logits: int) -> int:
    """How many rows have this many logits, at least one; on a GPU more rows are faster."""
    return max(1, (logits if backbone.device.type == "cpu" else _ON_GPU) // backbone.vocabulary)


def _evenly(rows: slice, size: int) -> Iterator[slice]:
    """Cut rows into parts of about equal length, none longer than `size`."""
    length = rows.stop - rows.start
    parts = max(1, -(-length // size))
    for n in range(parts):
        yield slice(rows.start + n * length // parts, rows.start + (n + 1) * length // parts)
