"""Attention matching (arXiv 2602.16284): few keys with which attention gives about the same as with all of them.

For one layer and one head: keys K (T, d) and values V (T, d) of a context, queries Q (N, d). Wanted are t < T of the
keys, C, with a bias b (t,) and values U (t, d) such that for the queries

    sum_i exp(q c_i + b_i)        ~  sum_j exp(q k_j)             attention's weight of the context        (mass)
    softmax(Q C^T + b) U          ~  softmax(Q K^T) V             what attention reads from the context    (output)

(q c stands for the scaled scores.) `mass` is a least-squares problem in w = exp(b) >= 0, `output` is one in U.

Which keys: those without which attention's output would change most,

    s_j = sqrt(mean_q p_q(j)^2) |v_j - mean v| / mean |v|         p_q: attention to all columns, not only the context

The keys are not divided evenly: the largest s_j of all layers and heads are kept (`chosen`). Some heads read every
token of a text (those that copy), most read few; with as many keys in every head, SmolLM2's predictions change ten
times as much (benchmarks/LOG.md). The paper divides them by measured properties of the model's heads instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["chosen", "importance", "matched"]

_STEPS = 100  # of the least-squares problem with w >= 0
_LEAST = 1e-4  # w; smaller weights are as good as none
_RIDGE = 1e-3  # relative to the mean diagonal: keeps the values close to the text's own where queries do not tell


def importance(scores: Tensor, values: Tensor, start: int, size: float) -> Tensor:
    """s_j of each column of a head from `start` on.

    Args:
        scores: of N queries for all columns (N, C).
        values: of all columns (C, d).
        start: first column of the context.
        size: mean |v| of the layer.

    Returns:
        (T,), T = C - start.
    """
    attention = torch.softmax(scores, -1)[:, start:].square().mean(0).sqrt()
    context = values[start:]
    distance: Tensor = (context - context.mean(0)).norm(dim=-1)
    return attention * distance / size


def chosen(scores: list[Tensor], ratio: float) -> list[Tensor]:
    """The largest 1/ratio of the numbers of all layers, (H, T) each: (H, T) bool each."""
    flat = torch.cat([s.flatten().to(scores[0].device) for s in scores])
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept[flat.topk(max(1, round(len(flat) / ratio))).indices] = True
    parts = torch.split(kept, [s.numel() for s in scores])
    return [part.view(s.shape).to(s.device) for part, s in zip(parts, scores, strict=True)]


def matched(scores: Tensor, values: Tensor, kept: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """b and U of one head.

    Args:
        scores: of N queries for all columns (N, C).
        values: of all columns (C, d).
        kept: which columns of the context stay (T,).
        start: first column of the context.

    Returns:
        b (t,) and U (t, d), in the order of the columns.
    """
    index, own = kept.nonzero().flatten(), values[start:]
    if not len(index) or len(index) == len(kept):
        return own.new_zeros(len(index)), own[index]
    share = torch.softmax(scores, -1)[:, start:].sum(-1)  # queries that hardly read the context count less
    inside = scores[:, start:]
    attention = torch.softmax(inside, -1)  # (N, T)
    weights = _nonnegative(attention[:, index] * share.sqrt()[:, None], share.sqrt())  # mass, relative to the whole
    bias = weights.log()
    x = torch.softmax(inside[:, index] + bias, -1) * share[:, None]
    y = (attention @ own) * share[:, None] - x @ own[index]
    gram = x.T @ x
    ridge = _RIDGE * gram.diagonal().mean() + 1e-8
    eye = torch.eye(len(index), device=x.device)
    return bias, own[index] + torch.linalg.solve(gram + ridge * eye, x.T @ y)


def _nonnegative(m: Tensor, y: Tensor) -> Tensor:
    """argmin_w |m w - y| with w >= `_LEAST`: accelerated projected gradient, from w = 1."""
    gram, right = m.T @ m, m.T @ y
    size = torch.linalg.matrix_norm(gram, 2) + 1e-12
    w = z = torch.ones_like(right)
    momentum = 1.0
    for _ in range(_STEPS):
        new = (z - (gram @ z - right) / size).clamp_min(_LEAST)
        following = 0.5 + (0.25 + momentum * momentum) ** 0.5
        z = new + (momentum - 1) / following * (new - w)
        w, momentum = new, following
    return w
