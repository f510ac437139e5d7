"""Attention matching (arXiv 2602.16284): few keys with which attention gives about the same as with all of them.

For one layer and one head: keys K (T, d) and values V (T, d) of a context, queries Q (N, d). Wanted are t < T of the
keys, C, with a bias b (t,) and values U (t, d) such that for the queries

    sum_i exp(q c_i + b_i)        ~  sum_j exp(q k_j)             attention's weight of the context        (mass)
    softmax(Q C^T + b) U          ~  softmax(Q K^T) V             what attention reads from the context    (output)

(q c stands for the scaled scores.) `mass` is a least-squares problem in w = exp(b) >= 0, `output` is one in U.

Which keys: the best one is taken, then the best one beside it, and so on (orthogonal matching pursuit). s_j is how
much better the output can be read with key j than with those that were taken before it, S:

    E(S) = min_U mean_q |sum_j p_q(j) (v_j - mean v) - sum_{i in S} p_q(i) u_i|^2 + ridge |U|^2
    s_j  = E(S) - E(S + j)                               p_q: attention to all columns, not only the context

So a key that others can replace counts little. The paper pursues the mass instead of the output.

The keys are not divided evenly: the largest s_j of all layers and heads, in units of the layer's values, are kept
(`chosen`). Some heads read every token of a text (those that copy), most read few; with as many keys in every head,
SmolLM2's predictions change several times as much (benchmarks/LOG.md). The paper divides them by measured properties of
the model's heads instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["chosen", "importance", "matched", "read_from"]

_STEPS = 40  # of the least-squares problem with w >= 0
_POWER = 5  # steps towards the largest eigenvalue
_LEAST = 1e-4  # w; smaller weights are as good as none
_AT_ONCE = 0.15  # keys that are taken at a time, as a part of those that were taken before
_ROWS = 4  # for each column; more queries are added up
_LEAST_RIDGE = 1e-12  # of heads that do not read the context
# Ridge of the choice and of the first weights, relative to the sum of the diagonal: above float32's rounding.
_NOISE = 1e-6
_LEAST_SHARE = 1e-30  # of the attention, where a query reads none of the columns
_LEAST_HALF = 64  # columns; the products of fewer are faster as they are
_RIDGE = 1e-3  # relative to the mean diagonal: keeps the values close to the text's own where queries do not tell


def read_from(scores: Tensor, values: Tensor, columns: slice, size: float) -> tuple[Tensor, Tensor]:
    """What `importance` is computed from, for one head.

    Args:
        scores: of N queries for all columns (N, C).
        values: of all columns (C, d).
        columns: T neighbours, which are matched together.
        size: mean |v| of the layer.

    Returns:
        The means over the queries of p(i) p(j) (T, T), and of p(i) times the output, in units of `size` (T, d).
    """
    attention, context = torch.softmax(scores, -1)[:, columns], values[columns] / size
    gram = _square(_paired(attention)) / len(attention)
    return gram, gram @ (context - context.mean(0))


def _paired(x: Tensor) -> Tensor:
    """At most `_ROWS` rows for each column, with nearly the same x^T x: sums of rows far apart, with random signs.

    x is (N, T), the attention of N queries. What two of them read in common has either sign, which cancels.
    """
    signs = torch.Generator().manual_seed(0)
    while len(x) > _ROWS * x.shape[1]:
        half = len(x) // 2
        sign = torch.randint(2, (half, 1), generator=signs).to(x) * 2 - 1
        x = torch.cat([torch.addcmul(x[:half], x[-half:].flip(0), sign), x[half:-half]])
    return x


def importance(gram: Tensor, reads: Tensor, wanted: int) -> Tensor:
    """s_j of the columns of H heads, (H, T, T) and (H, T, d) of `read_from` -> (H, T), in units of `size` squared.

    For speed, several keys are taken at a time, with what each alone would add: `_AT_ONCE` of the number of those that
    were taken before, but at least one. And a head takes no more if its next key would not be among the `wanted`
    largest of all heads; its other keys have what each would add then.
    """
    (heads, total, width), device = reads.shape, gram.device
    found, at = torch.full((heads, total), -1.0, device=device), torch.arange(heads, device=device)
    # What the taken keys do not explain of the Gram matrix is gram - basis^T basis, of which `left` is the diagonal.
    left, basis, taken, count = gram.diagonal(dim1=1, dim2=2).clone(), torch.empty_like(gram), found > 0, 0
    ridge = _NOISE * left.sum(1, keepdim=True) + _LEAST_RIDGE
    while count < total and len(at):
        gain = torch.linalg.vector_norm(reads, dim=-1).square() / (left.clamp_min(0) + ridge)
        gain = torch.where(taken, -1, gain)
        going = gain.amax(1) >= found.flatten().topk(wanted).values[-1]
        if 2 * int(going.sum()) <= len(at):  # rarely, because it copies what the others know
            found[at[~going]] = torch.where(taken, found[at], gain)[~going]
            at, gram, reads, left, basis, taken, ridge, gain = (
                t[going] for t in (at, gram, reads, left, basis, taken, ridge, gain)
            )
        every = torch.arange(len(at), device=device)[:, None]
        best = gain.topk(min(total - count, max(1, int(_AT_ONCE * count)))).indices  # (H, k)
        found[at[:, None], best], taken[every, best] = gain[every, best], True
        known, size = basis[:, :count], best.shape[1]
        its = known.gather(2, best[:, None].expand(-1, count, -1))
        columns = torch.baddbmm(gram[every, best], its.mT, known, alpha=-1)  # (H, k, T)
        inside = columns.gather(2, best[:, None].expand(-1, size, -1))
        root = torch.linalg.cholesky(inside + ridge[..., None] * torch.eye(size, device=device))
        solved = torch.linalg.solve_triangular(root, torch.cat([columns, reads[every, best]], 2), upper=False)
        more, read = solved.split((total, width), 2)
        reads = torch.baddbmm(reads, more.mT, read, alpha=-1)
        left = left - more.square().sum(1)
        basis[:, count : count + size] = more
        count += size
    return found


def chosen(scores: list[Tensor], count: int) -> list[Tensor]:
    """The `count` largest of the numbers of all layers, (H, T) each: (H, T) bool each."""
    flat = torch.cat([s.flatten().to(scores[0].device) for s in scores])
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept[flat.topk(count).indices] = True
    parts = torch.split(kept, [s.numel() for s in scores])
    return [part.view(s.shape).to(s.device) for part, s in zip(parts, scores, strict=True)]


def matched(scores: Tensor, values: Tensor, kept: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """b and U of one head.

    Args:
        scores: of N queries for all columns (N, C).
        values: of all columns (C, d).
        kept: which of these columns stay (T,).
        columns: the T that are matched together.

    Returns:
        b (t,) and U (t, d), in the order of the columns.
    """
    index, own = kept.nonzero().flatten(), values[columns]
    if not len(index) or len(index) == len(kept):
        return own.new_zeros(len(index)), own[index]
    attention = torch.softmax(scores, -1)[:, columns]
    share = attention.sum(-1, keepdim=True).clamp_min(_LEAST_SHARE)  # queries that hardly read the columns count less
    few = attention[:, index]
    weights = _nonnegative(few / share.sqrt(), share[:, 0].sqrt())  # mass, relative to the whole
    bias = weights.log()
    x = few * weights
    x = x * (share / x.sum(-1, keepdim=True).clamp_min(_LEAST_SHARE))
    gram = _square(x)
    missing = x.T @ (attention @ own) - gram @ own[index]
    ridge = _RIDGE * gram.diagonal().mean() + 1e-8
    root = torch.linalg.cholesky(gram + ridge * torch.eye(len(index), device=x.device))
    return bias, own[index] + torch.cholesky_solve(missing, root)


def _nonnegative(m: Tensor, y: Tensor) -> Tensor:
    """argmin_w |m w - y| with w >= `_LEAST`, for m >= 0: accelerated projected gradient.

    It begins with the unconstrained solution, which is often nearly the wanted one.
    """
    gram, right = _square(m), m.T @ y
    u = torch.ones_like(right)
    for _ in range(_POWER):
        u = gram @ u
        u = (u / u.max().clamp_min(_LEAST_SHARE)).clamp_min(1e-6)
    size = (gram @ u / u).max() + _LEAST_SHARE  # not less than the largest eigenvalue (Collatz)
    gram, right = gram / size, right / size
    ridge = _NOISE * gram.diagonal().sum() + _LEAST_RIDGE
    root = torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), device=gram.device))
    w = z = torch.cholesky_solve(right[:, None], root)[:, 0].clamp_min(_LEAST)
    momentum = 1.0
    for _ in range(_STEPS):
        new = torch.addmv(z + right, gram, z, alpha=-1).clamp_min(_LEAST)
        following = 0.5 + (0.25 + momentum * momentum) ** 0.5
        z = new + (momentum - 1) / following * (new - w)
        w, momentum = new, following
    return w


def _square(x: Tensor) -> Tensor:
    """x^T x. It is symmetric, so a part of its products need not be computed."""
    half = x.shape[1] // 2
    if half < _LEAST_HALF:
        return x.T @ x
    corner = x[:, :half].T @ x[:, half:]
    return torch.cat([torch.cat([_square(x[:, :half]), corner], 1), torch.cat([corner.T, _square(x[:, half:])], 1)])
