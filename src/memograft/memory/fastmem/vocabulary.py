"""Exact cross-entropy and KL over the whole vocabulary, without gradient and without holding the logits of all rows.

    CE_t = z_t - l_t[c_t]        KL_t = sum_v p_t(v) (log p_t(v) - log q_t(v))        z = logsumexp(l)

The head is applied to as many rows as make a fast matrix product, and what follows it to as few as fit in a CPU's
second-level cache: for a small model these elementwise passes cost as much as the product if each goes through memory.
After memorizing, the head is applied to all rows and a part of the vocabulary at a time, which is the faster product:

    KL_t = sum_v p_t(v) (l_t[v] - l'_t[v]) + z'_t - z_t                     l', z': of the memorized model
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from memograft.memory.fastmem.rows import TrainingRows
from memograft.model.backbone import Backbone, first

__all__ = ["Base", "base_losses", "exact_losses", "head", "memorized_losses"]

# Numbers of logits: of one matrix product, and of one elementwise pass behind it.
_PRODUCT, _PASS, _ON_GPU = 1 << 24, 1 << 19, 1 << 26
_TILE = 4096  # tokens of the vocabulary in one product with all rows of a context; fewer for many rows
_TILED = 1 << 21  # logits of such a product


@dataclass(frozen=True)
class Base:
    """What the base model predicts at N rows of B contexts.

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
def base_losses(backbone: Backbone, hidden: Tensor, rows: TrainingRows, *, mass: bool) -> Base:
    """One pass over the rows, from the base model's input to the head (N, D)."""
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
    return Base(losses, normaliser, summed)


@torch.no_grad()
def memorized_losses(
    backbone: Backbone, before: Tensor, after: Tensor, base: Base, rows: TrainingRows
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and KL(base || memorized) of each row, (N,) both, in nats.

    Args:
        backbone: the model.
        before: the base model's input to the head (N, D).
        after: the memorized model's (N, D).
        base: the base model's losses.
        rows: the rows.
    """
    losses, kl = torch.empty_like(base.losses), torch.empty_like(base.losses)
    for own in rows.slices:
        for part in [own] if backbone.has_plain_head else _evenly(own, _size(backbone, _PRODUCT)):
            running = _Running(backbone, base.normaliser[part], rows.targets[part])
            for start, old, new in _tiles(backbone, before[part], after[part]):
                running.add(start, old, new)
            losses[part], kl[part] = running.losses_and_kl()
    return losses, kl


class _Running:
    """Cross-entropy and KL of M rows, summed over parts of the vocabulary.

    Args:
        backbone: the model.
        normaliser: the base model's logsumexp of each row (M,).
        targets: the token of each row (M,).
    """

    def __init__(self, backbone: Backbone, normaliser: Tensor, targets: Tensor) -> None:
        self._backbone, self._base, self._targets = backbone, normaliser, targets
        self._top = torch.full_like(normaliser, -torch.inf)  # largest logit so far
        self._total, self._moved, self._target = (torch.zeros_like(normaliser) for _ in range(3))

    def add(self, start: int, old: Tensor, new: Tensor) -> None:
        """The head's output for the tokens from `start` on: the base model's and the memorized one's, (M, W) both."""
        width = old.shape[1]
        limit = _PASS if old.device.type == "cpu" else _ON_GPU
        for few in _evenly(slice(0, len(old)), max(1, limit // width)):
            logits, other = self._backbone.finish(old[few]), self._backbone.finish(new[few])
            place = self._targets[few] - start
            inside = (place >= 0) & (place < width)
            self._target[few] += _at(other, place.clamp(0, width - 1)).where(inside, 0.0)
            difference = logits - other
            self._moved[few] += torch.linalg.vecdot(logits.sub_(self._base[few, None]).exp_(), difference)
            top = torch.maximum(self._top[few], other.amax(-1))
            new_part = other.sub_(top[:, None]).exp_().sum(-1)
            self._total[few] = self._total[few] * (self._top[few] - top).exp() + new_part
            self._top[few] = top

    def losses_and_kl(self) -> tuple[Tensor, Tensor]:
        """(M,) both, once the whole vocabulary was added. Rounding can make a KL of 0 negative."""
        normaliser = self._top + self._total.log()
        return normaliser - self._target, (self._moved + normaliser - self._base).clamp_min(0.0)


def _tiles(backbone: Backbone, before: Tensor, after: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The head's output for both inputs (M, D), a part of the vocabulary at a time: its first token, (M, W) of both."""
    if not backbone.has_plain_head:
        yield 0, head(backbone, before), head(backbone, after)
        return
    module: Any = backbone.head
    weight, bias, device = module.weight, module.bias, before.device
    old, new = before.to(weight.device), after.to(weight.device)
    fitting = (_TILED if device.type == "cpu" else _ON_GPU) // len(before)
    width = min(_TILE, max(256, fitting)) if device.type == "cpu" else max(1, fitting)
    for start in range(0, len(weight), width):
        part = slice(start, start + width)
        own = None if bias is None else bias[part]
        before, after = (linear(h, weight[part], own).to(device) for h in (old, new))
        yield start, before, after


@torch.no_grad()
def exact_losses(backbone: Backbone, rows: TrainingRows) -> Tensor:
    """Cross-entropy of each row over the whole vocabulary with no adapter active: (N,), in nats."""
    hidden = backbone.hidden(rows.x[None], rows.residual[None])[0].to(rows.x.device)
    return base_losses(backbone, hidden, rows, mass=False).losses


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
