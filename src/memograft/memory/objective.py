"""The loss of memorizing: next-token cross-entropy plus KL to the base model, over all tokens or over a shortlist.

A step over a shortlist of S candidates (the context's own tokens and the base model's best guesses there) spares most of the
head, which is 70-90% of a step for today's vocabularies. Everything outside the shortlist is one bucket whose mass is taken
to stay what the base model gave it. The losses that are reported are always exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from memograft.backbone import Backbone

if TYPE_CHECKING:
    from memograft.memory.fastmem import Rows

_CHUNK = 1 << 26  # logits held at once where no gradient is needed: 256 MiB of float32


class Objective:
    """The loss of B contexts; `before` is the base model's loss of every row, (B, N), exact.

    Must be made while no adapter is active: it takes p_0 from the model as it is.
    """

    def __init__(self, backbone: Backbone, rows: Rows, kl_weight: float, shortlist: int | None) -> None:
        self._backbone, self._rows, self._kl_weight = backbone, rows, kl_weight
        self._count = rows.mask.sum(1).clamp_min(1)
        vocabulary = _vocabulary(backbone)
        self._candidates: Tensor | None = None
        with torch.no_grad():
            self._hidden = backbone.hidden(rows.x, rows.residual)
            if shortlist is not None and shortlist < vocabulary and _has_plain_head(backbone):
                self.before, self._candidates = self._choose(shortlist, vocabulary)
                self._base = self._over_shortlist(self._hidden)
            else:
                self._base = torch.log_softmax(backbone.logits(rows.x, rows.residual), -1)
                self.before = _pick(self._base, rows.targets)

    def loss(self) -> Tensor:
        """(B,): mean CE + beta * mean KL over each context's rows, with the adapter that is active now."""
        rows = self._rows
        hidden = self._backbone.hidden(rows.x, rows.residual)
        if self._candidates is None:
            logp = torch.log_softmax(self._head(hidden), -1)
            targets = rows.targets
        else:
            logp = self._over_shortlist(hidden)
            targets = torch.searchsorted(self._candidates, rows.targets)
        return self._mean(_pick(logp, targets)) + self._kl_weight * self._mean(_kl(self._base, logp))

    @torch.no_grad()
    def exact(self) -> tuple[Tensor, Tensor]:
        """Loss per row (B, N) and mean KL (B,), over the whole vocabulary, with the adapter that is active now."""
        rows = self._rows
        hidden = self._backbone.hidden(rows.x, rows.residual)
        losses, kls = torch.empty_like(self.before), torch.empty_like(self.before)
        for part in self._chunks(hidden.shape[1]):
            logp = torch.log_softmax(self._head(hidden[:, part]), -1)
            base = self._base[:, part] if self._candidates is None else self._exact_base(part)
            losses[:, part], kls[:, part] = _pick(logp, rows.targets[:, part]), _kl(base, logp)
        return losses, self._mean(kls)

    def _exact_base(self, part: slice) -> Tensor:
        return torch.log_softmax(self._head(self._hidden[:, part]), -1)

    def _head(self, hidden: Tensor) -> Tensor:
        return self._backbone.finish(self._backbone.head(hidden))

    def _mean(self, per_row: Tensor) -> Tensor:
        return (per_row * self._rows.mask).sum(1) / self._count

    def _chunks(self, length: int) -> list[slice]:
        step = max(1, _CHUNK // (len(self._count) * _vocabulary(self._backbone)))
        return [slice(start, start + step) for start in range(0, length, step)]

    def _choose(self, size: int, vocabulary: int) -> tuple[Tensor, Tensor]:
        """Exact base losses (B, N), and the candidates: the targets, then what the base model finds likeliest, ascending."""
        rows = self._rows
        losses = torch.empty(rows.targets.shape, device=self._hidden.device)
        mass = torch.zeros(vocabulary, device=self._hidden.device)
        self._log_rest = torch.empty_like(losses)
        normaliser = torch.empty_like(losses)
        for part in self._chunks(rows.targets.shape[1]):
            logits = self._head(self._hidden[:, part])
            normaliser[:, part] = logits.logsumexp(-1)
            logp = logits - normaliser[:, part, None]
            losses[:, part] = _pick(logp, rows.targets[:, part])
            mass += (logp.exp() * rows.mask[:, part, None]).sum((0, 1))
        mass[rows.targets[rows.mask]] = torch.inf
        candidates = mass.topk(max(size, int(torch.isinf(mass).sum()))).indices.sort().values
        self._candidates = candidates
        chosen = self._raw_shortlist(self._hidden)
        rest = 1.0 - (chosen - normaliser[..., None]).exp().sum(-1)
        self._log_rest = rest.clamp_min(1e-9).log() + normaliser
        return losses, candidates

    def _raw_shortlist(self, hidden: Tensor) -> Tensor:
        head = self._backbone.head
        bias = getattr(head, "bias", None)
        picked = None if bias is None else bias[self._candidates]
        return self._backbone.finish(nn.functional.linear(hidden, head.weight[self._candidates], picked))  # type: ignore[index]

    def _over_shortlist(self, hidden: Tensor) -> Tensor:
        """(B, N, D) -> log-probabilities (B, N, S + 1); the last is the bucket."""
        logits = self._raw_shortlist(hidden)
        return torch.log_softmax(torch.cat([logits, self._log_rest[..., None]], -1), -1)


def _pick(logp: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each row."""
    return -logp.gather(-1, targets[..., None]).squeeze(-1)


def _kl(base: Tensor, logp: Tensor) -> Tensor:
    """KL(p_0 || p_phi) of each row."""
    return torch.nn.functional.kl_div(logp, base, log_target=True, reduction="none").sum(-1)


def _vocabulary(backbone: Backbone) -> int:
    head = backbone.head
    return int(getattr(head, "out_features", 0) or head.weight.shape[0])  # type: ignore[union-attr,operator]


def _has_plain_head(backbone: Backbone) -> bool:
    weight = getattr(backbone.head, "weight", None)
    return isinstance(backbone.head, nn.Linear) and isinstance(weight, Tensor) and weight.is_floating_point()
