"""The loss of memorizing (FastMem, arXiv 2406.16069, section 3), over the whole vocabulary or over a shortlist.

    L(phi) = mean_t CE(p_phi(. | c_<t), c_t) + beta * mean_t KL(p_0(. | c_<t) || p_phi(. | c_<t))

This is `Objective.loss`; `_pick` is the CE and `_kl` the KL.

With a shortlist, a step computes logits only for S candidate tokens of each context: the context's own tokens and those
the base model finds most likely there. The head over the whole vocabulary would be 70-90% of a step with current
vocabularies. All other tokens form one bucket, whose unnormalised mass, sum exp(logit), is kept at the base model's
value. The reported losses are always exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from memograft.model.backbone import Backbone, first, has_plain_weight

if TYPE_CHECKING:
    from memograft.memory.fastmem.rows import TrainingRows

# Number of logits computed at once without gradient. CPUs are fastest if they fit in the cache (32 MiB of float32; with
# 256 MiB, memorizing with SmolLM2 took 1.4 times as long). GPUs are fastest with large chunks.
_CHUNK, _CHUNK_ON_GPU = 1 << 23, 1 << 26
_NEVER = -1e9  # probability 0, but finite, so that differences are not NaN


@torch.no_grad()
def exact_losses(backbone: Backbone, rows: TrainingRows) -> Tensor:
    """Cross-entropy of each row over the whole vocabulary with the active adapter: (B, N), in nats."""
    losses = torch.empty(rows.targets.shape, device=rows.x.device)
    for part in _chunks(backbone, *losses.shape):
        logits = backbone.logits(rows.x[:, part], rows.residual[:, part]).to(losses.device)
        losses[:, part] = _pick(torch.log_softmax(logits, -1), rows.targets[:, part])
    return losses


class Objective:
    """The loss of B contexts. `before` is the base model's exact loss of every row, (B, N).

    Create it while no adapter is active: p_0 is computed from the model's current output.
    """

    def __init__(self, backbone: Backbone, rows: TrainingRows, kl_weight: float, shortlist: int | None) -> None:
        self._backbone, self._rows, self._kl_weight = backbone, rows, kl_weight
        self._count = rows.mask.sum(1).clamp_min(1)
        vocabulary = backbone.vocabulary
        self._shortlist: _Shortlist | None = None
        with torch.no_grad():
            self._hidden = self._hidden_now()
            if shortlist is not None and shortlist < vocabulary and _has_plain_head(backbone):
                self.before, self._shortlist = self._choose(shortlist, vocabulary)
                self._base = self._shortlist.logp(self._hidden)
            else:
                self._base = torch.log_softmax(self._head(self._hidden), -1)
                self.before = _pick(self._base, rows.targets)

    def loss(self) -> tuple[Tensor, Tensor]:
        """With the active adapter: mean CE + beta * mean KL of each context (B,), and the KL alone (B,)."""
        rows, hidden = self._rows, self._hidden_now()
        if self._shortlist is None:
            logp, targets = torch.log_softmax(self._head(hidden), -1), rows.targets
        else:
            logp, targets = self._shortlist.logp(hidden), self._shortlist.places(rows.targets)
        kl = self._mean(_kl(self._base, logp))
        return self._mean(_pick(logp, targets)) + self._kl_weight * kl, kl

    @torch.no_grad()
    def exact(self) -> tuple[Tensor, Tensor]:
        """With the active adapter, over the whole vocabulary: loss per row (B, N) and mean KL (B,)."""
        rows, hidden = self._rows, self._hidden_now()
        losses, kls = torch.empty_like(self.before), torch.empty_like(self.before)
        for part in _chunks(self._backbone, *losses.shape):
            logp = torch.log_softmax(self._head(hidden[:, part]), -1)
            base = self._base[:, part] if self._shortlist is None else self._exact_base(part)
            losses[:, part], kls[:, part] = _pick(logp, rows.targets[:, part]), _kl(base, logp)
        return losses, self._mean(kls)

    def _hidden_now(self) -> Tensor:
        # With a device map, the norm and the head may be on another device than the rows.
        return self._backbone.hidden(self._rows.x, self._rows.residual).to(self._rows.x.device)

    def _exact_base(self, part: slice) -> Tensor:
        return torch.log_softmax(self._head(self._hidden[:, part]), -1)

    def _head(self, hidden: Tensor) -> Tensor:
        return self._backbone.finish(first(self._backbone.head(hidden))).to(hidden.device)

    def _mean(self, per_row: Tensor) -> Tensor:
        return per_row.where(self._rows.mask, 0.0).sum(1) / self._count

    def _choose(self, size: int, vocabulary: int) -> tuple[Tensor, _Shortlist]:
        """Exact base losses (B, N), and a shortlist of each context's targets and the tokens the model finds likely."""
        rows, device = self._rows, self._hidden.device
        losses = torch.empty(rows.targets.shape, device=device)
        normaliser = torch.empty_like(losses)
        mass = torch.zeros(len(rows.targets), vocabulary, device=device)
        for part in _chunks(self._backbone, *losses.shape):
            logits = self._head(self._hidden[:, part])
            normaliser[:, part] = logits.logsumexp(-1)
            logp = logits - normaliser[:, part, None]
            losses[:, part] = _pick(logp, rows.targets[:, part])
            mass += logp.exp().where(rows.mask[:, part, None], 0.0).sum(1)
        row, column = rows.mask.nonzero(as_tuple=True)
        mass[row, rows.targets[row, column]] = torch.inf
        return losses, _Shortlist(self._backbone, mass, size, self._hidden, normaliser)


class _Shortlist:
    """The candidates of each context, and the model's distribution over them and a bucket for all other tokens.

    Args:
        backbone: the model whose head is used.
        mass: weight of each token as a candidate (B, V); infinite for tokens that must be included.
        size: candidates per context; more if more tokens must be included.
        hidden: the base model's input to the head (B, N, D).
        normaliser: the base model's logsumexp of all logits (B, N).
    """

    def __init__(self, backbone: Backbone, mass: Tensor, size: int, hidden: Tensor, normaliser: Tensor) -> None:
        self._backbone = backbone
        own = torch.isinf(mass).sum(1).clamp_min(size)  # (B,): independent of the other contexts of the batch
        best = mass.topk(int(own.max())).indices
        best = best.where(torch.arange(best.shape[1], device=best.device) < own[:, None], mass.shape[1])
        self._candidates = best.sort().values  # (B, S) ascending, padded with V
        self._beyond = self._candidates == mass.shape[1]
        known = self._candidates.masked_fill(self._beyond, 0)
        head: Any = backbone.head
        known = known.to(head.weight.device)
        self._weight = head.weight.detach()[known].to(hidden.device)  # (B, S, D)
        self._bias = None if head.bias is None else head.bias.detach()[known][:, None].to(hidden.device)  # (B, 1, S)
        chosen = self._logits(hidden)
        rest = 1.0 - (chosen - normaliser[..., None]).exp().sum(-1)
        self._log_rest = rest.clamp_min(1e-9).log() + normaliser

    def logp(self, hidden: Tensor) -> Tensor:
        """(B, N, D) -> log-probabilities (B, N, S + 1); the last is the bucket."""
        return torch.log_softmax(torch.cat([self._logits(hidden), self._log_rest[..., None]], -1), -1)

    def places(self, targets: Tensor) -> Tensor:
        """Token ids (B, N) -> their indices among the candidates (B, N)."""
        return torch.searchsorted(self._candidates, targets)

    def _logits(self, hidden: Tensor) -> Tensor:
        raw = hidden @ self._weight.mT
        if self._bias is not None:
            raw = raw + self._bias
        return self._backbone.finish(raw).masked_fill(self._beyond[:, None], _NEVER)


def _pick(logp: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each row."""
    return -logp.gather(-1, targets[..., None]).squeeze(-1)


def _kl(base: Tensor, logp: Tensor) -> Tensor:
    """KL(p_0 || p_phi) of each row."""
    return torch.nn.functional.kl_div(logp, base, log_target=True, reduction="none").sum(-1)


def _chunks(backbone: Backbone, batch: int, length: int) -> list[slice]:
    """Split (batch, length) rows into slices whose logits fit the bound."""
    held = _CHUNK if backbone.device.type == "cpu" else _CHUNK_ON_GPU
    step = max(1, held // (batch * backbone.vocabulary))
    return [slice(start, start + step) for start in range(0, length, step)]


def _has_plain_head(backbone: Backbone) -> bool:
    return isinstance(backbone.head, nn.Linear) and has_plain_weight(backbone.head)
