"""The loss of memorizing (FastMem, arXiv 2406.16069, section 3), over the whole vocabulary or over a shortlist.

    L(phi) = mean_t CE(p_phi(. | c_<t), c_t) + beta * mean_t KL(p_0(. | c_<t) || p_phi(. | c_<t))

This is `Objective.loss`; `_pick` is the CE and `_kl` the KL. With a shortlist, a step computes logits only for S
candidate tokens of each context (`shortlist.py`).

The reported cross-entropies are always exact (`vocabulary.py`): over the whole vocabulary, once before the first step
and once after the last. The reported KL is exact without a shortlist. With one, it is estimated, because it would need
the logits of both models at every row. Over the candidates and the bucket of a row,

    e_t = sum_v p_t(v) (l_t[v] - l'_t[v]) + z'_t - z_t             l: logits; ': of the memorized model; p: of the base

where the normalisers z are those of the whole vocabulary. In e_t, the bucket moves as the mean of the context's other
tokens, not of the row's, so e_t is off in proportion to the bucket's probability r_t. Therefore the KL is exact in K
rows, drawn systematically with probabilities proportional to r_t (Horvitz and Thompson, 1952), and corrects the rest:

    KL ~ mean_t e_t + mean_t r_t * mean_k (KL_k - e_k) / r_k

With SmolLM2 on 64 pages of NQ-SWAP that were not used to choose K, it is off by .6% (median), 2.1% (90% of the pages)
and 3.9% (at most), and CE + 0.1 KL by .01%; on five pages at once (32 times) by 2.3%, 4.9%, 5.4% and .01%.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from memograft.memory.fastmem.rows import TrainingRows
from memograft.memory.fastmem.shortlist import Shortlist
from memograft.memory.fastmem.vocabulary import cross_entropy, head, kl_divergence
from memograft.model.backbone import Backbone

__all__ = ["ALL", "Objective"]

ALL = slice(None)

_ROWS = 256  # rows of a training pass on a CPU, whose activations are held for the backward pass
_HELD = 1 << 26  # logits of a step over the whole vocabulary that are held at once (256 MiB of float32)
_DRAWN = 16  # K: this many rows of a context, or one in this many if that is more


class Objective:
    """The loss of B contexts of N rows. Create it while no adapter is active: it computes p_0 with the model as it is.

    Attributes:
        before: the base model's exact loss of every row (N,).
        x: what every pass gives to the last FFN, in blocks (C, M, D).
        parts: which of the blocks are computed together; a pass over few rows holds less memory.
    """

    def __init__(self, backbone: Backbone, rows: TrainingRows, kl_weight: float, shortlist: int | None) -> None:
        self._backbone, self._rows, self._kl_weight = backbone, rows, kl_weight
        device, self._blocks = rows.x.device, rows.blocks
        self._lengths = torch.tensor(rows.lengths, device=device)
        self._context = torch.arange(len(rows.lengths), device=device).repeat_interleave(self._lengths)  # (N,)
        self.x, self._residual = rows.x[self._blocks.rows], rows.residual[self._blocks.rows]  # (C, M, D)
        self._shortlist: Shortlist | None = None
        self._base: Tensor | None = None
        with torch.no_grad():
            self._hidden = self._hidden_of(rows.x[None], rows.residual[None])[0]  # (N, D)
            short = shortlist is not None and shortlist < backbone.vocabulary and backbone.has_plain_head
            self._exact = cross_entropy(backbone, self._hidden, rows, mass=short)
            if self._exact.mass is not None and shortlist is not None:
                self._exact.mass[self._context, rows.targets] = torch.inf
                hidden, normaliser = (t[self._blocks.rows] for t in (self._hidden, self._exact.normaliser))
                self._shortlist = Shortlist(backbone, self._exact.mass, shortlist, self._blocks, hidden, normaliser)
                self._base = self._shortlist.logp(hidden)
                self._places = self._shortlist.places(rows.targets[self._blocks.rows])
        count, length = self.x.shape[:2]
        split = self._shortlist is not None and device.type == "cpu"
        size = max(1, _ROWS // length) if split else count
        self.parts = [slice(start, start + size) for start in range(0, count, size)]
        self.before = self._exact.losses

    def loss(self, part: slice = ALL) -> tuple[Tensor, Tensor]:
        """With the adapters of these blocks active: their part of each context's mean CE + beta * mean KL (B,), and of
        the KL alone (B,). Without a shortlist, all blocks are one part."""
        hidden, real = self._hidden_of(self.x[part], self._residual[part]), self._blocks.real[part]
        if self._shortlist is None:
            ce, kl = self._full(hidden[real])
        else:
            assert self._base is not None
            logp = self._shortlist.logp(hidden, part)
            ce, kl = _pick(logp, self._places[part])[real], _kl(self._base[part], logp)[real]
        context = self._context[self._blocks.rows[part][real]]
        mean_kl = self._mean(kl, context)
        return self._mean(ce, context) + self._kl_weight * mean_kl, mean_kl

    @torch.no_grad()
    def measured(self, active: Callable[[slice], AbstractContextManager[None]]) -> tuple[Tensor, Tensor]:
        """Of the memorized model: each row's exact cross-entropy (N,), and each context's mean KL over the rows of its
        text (B,). `active` enters adapters of some blocks."""
        hidden, kl = list[Tensor](), list[Tensor]()
        for part in self.parts:
            with active(part):
                own = self._hidden_of(self.x[part], self._residual[part])
            real = self._blocks.real[part]
            hidden.append(own[real])
            if self._shortlist is not None:
                assert self._base is not None
                normaliser = self._exact.normaliser[self._blocks.rows[part], None]
                kl.append(_kl(self._base[part], self._shortlist.logits(own, part) - normaliser)[real])
        after = torch.cat(hidden)
        if self._shortlist is None:
            losses, exact = self._full(after)
            mean = torch.stack([exact[text].mean() for text in self._rows.texts])
        else:
            now = cross_entropy(self._backbone, after, self._rows, mass=False)
            losses, mean = now.losses, self._estimated(torch.cat(kl), after, now.normaliser)
        return losses, mean.clamp_min(0.0)  # rounding and, with a shortlist, chance can make it negative

    def _estimated(self, moved: Tensor, after: Tensor, normaliser: Tensor) -> Tensor:
        """Mean KL of each context (B,), from sum_v p(v) (l[v] - l'[v]) over candidates and bucket (N,), and from the
        memorized model's input to the head (N, D) and normaliser (N,)."""
        assert self._base is not None
        base, bucket = self._exact.normaliser, self._base[..., -1].exp()[self._blocks.real].clamp_min(1e-9)
        kl, texts = moved + normaliser - base, self._rows.texts
        drawn = [text.start + _drawn(bucket[text]) for text in texts]
        rows = torch.cat(drawn)
        exact = kl_divergence(self._backbone, (self._hidden[rows], base[rows]), (after[rows], normaliser[rows]))
        missed = torch.split((exact - kl[rows]) / bucket[rows], [len(own) for own in drawn])
        pairs = zip(texts, missed, strict=True)
        return torch.stack([kl[text].mean() + bucket[text].mean() * own.mean() for text, own in pairs])

    def _full(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """CE and KL of each row, (N,) both, over the whole vocabulary, from the input to the head (N, D)."""
        if len(hidden) * self._backbone.vocabulary <= _HELD:
            if self._base is None:
                with torch.no_grad():
                    self._base = self._logp(self._hidden)
            logp = self._logp(hidden)
            return _pick(logp, self._rows.targets), _kl(self._base, logp)

        def part(before: Tensor, after: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            logp = self._logp(after)
            return _pick(logp, targets), _kl(self._logp(before), logp)

        size = max(1, _HELD // self._backbone.vocabulary)
        tensors = (self._hidden, hidden, self._rows.targets)
        found = [
            checkpoint(part, *(t[start : start + size] for t in tensors), use_reentrant=False)
            for start in range(0, len(hidden), size)
        ]
        return torch.cat([ce for ce, _ in found]), torch.cat([kl for _, kl in found])

    def _hidden_of(self, x: Tensor, residual: Tensor) -> Tensor:
        # With a device map, the norm and the head may be on another device than the rows.
        return self._backbone.hidden(x, residual).to(self._rows.x.device)

    def _logp(self, hidden: Tensor) -> Tensor:
        return torch.log_softmax(self._backbone.finish(head(self._backbone, hidden)), -1)

    def _mean(self, per_row: Tensor, context: Tensor) -> Tensor:
        """(n,) of rows of these contexts (n,) -> (B,)"""
        sums = per_row.new_zeros(len(self._lengths)).index_add(0, context, per_row)
        return sums / self._lengths


def _pick(logp: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each row."""
    return -logp.gather(-1, targets[..., None]).squeeze(-1)


def _kl(base: Tensor, logp: Tensor) -> Tensor:
    """KL(p_0 || p_phi) of each row."""
    return torch.nn.functional.kl_div(logp, base, log_target=True, reduction="none").sum(-1)


def _drawn(weights: Tensor) -> Tensor:
    """Indices of K rows, drawn systematically with probabilities proportional to these weights (N,)."""
    ends, count = weights.cumsum(0), max(_DRAWN, len(weights) // _DRAWN)
    points = (torch.arange(count, device=ends.device) + 0.5) / count * ends[-1]
    return torch.searchsorted(ends, points).clamp_max(len(ends) - 1)
