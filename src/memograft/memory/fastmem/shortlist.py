"""A distribution over S candidate tokens of each context and one bucket for all others, instead of over V tokens.

Candidates are the context's own tokens and those that the base model finds most likely there. With current vocabularies
the head over all V tokens would be 70-90% of a training step. The others' logits would move too if the head's input
moves from h_0 to h; the bucket moves as the mean of them does, to first order and for the context as a whole:

    l_rest(h) = log sum_{v not in S} exp(l_v(h_0)) + s m . (h - h_0)        m = E_{v ~ p_0, not in S, all rows}[w_v]

Without the second term, training could raise all other tokens at no cost: the exact loss then rises while the
shortlist's falls. s is the model's factor on logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from memograft.memory.fastmem.rows import Blocks
from memograft.model.backbone import Backbone

__all__ = ["Shortlist"]

_NEVER = -1e9  # probability 0, but finite, so that differences are not NaN


class Shortlist:
    """The candidates of B contexts, and the model's distribution over them and the bucket.

    Args:
        backbone: the model, whose head is a plain linear map.
        mass: probability of each token, summed over a context's rows (B, V); infinite for tokens that must be included.
        size: candidates per context; more if more tokens must be included.
        blocks: arrangement of the rows.
        hidden: the base model's input to the head (C, M, D).
        normaliser: the base model's logsumexp of all logits (C, M).
    """

    def __init__(
        self, backbone: Backbone, mass: Tensor, size: int, blocks: Blocks, hidden: Tensor, normaliser: Tensor
    ) -> None:
        self._backbone, self._hidden, vocabulary = backbone, hidden, mass.shape[1]
        own = torch.isinf(mass).sum(1).clamp_min(size)  # (B,): independent of the other contexts of the batch
        best = mass.topk(int(own.max())).indices
        best = best.where(torch.arange(best.shape[1], device=best.device) < own[:, None], vocabulary)
        candidates = best.sort().values  # (B, S) ascending, padded with V
        known = candidates.masked_fill(candidates == vocabulary, 0)
        head: Any = backbone.head
        weight, device = head.weight.detach(), hidden.device
        known = known.to(weight.device)
        bias = None if head.bias is None else head.bias.detach()[known][:, None].to(device)
        self._candidates = blocks.spread(candidates)  # (C, S)
        self._beyond = self._candidates == vocabulary
        self._weight = blocks.spread(weight[known].to(device))  # (C, S, D)
        self._bias = None if bias is None else blocks.spread(bias)  # (C, 1, S)
        others = nn.functional.pad(mass, (0, 1)).scatter(1, best, 0.0)[:, :vocabulary]  # the padding is V
        others = others / others.sum(1, keepdim=True).clamp_min(1e-9)
        mean = (others.to(weight) @ weight).to(device)  # (B, D)
        self._mean = blocks.spread(mean)[:, :, None]  # (C, D, 1)
        chosen = self._of_candidates(hidden, slice(None))
        rest = 1.0 - (chosen - normaliser[..., None]).exp().sum(-1)
        self._log_rest = rest.clamp_min(1e-9).log() + normaliser  # (C, M)

    def logits(self, hidden: Tensor, part: slice = slice(None)) -> Tensor:
        """(C, M, D) of these blocks -> (C, M, S + 1); the last is the bucket."""
        moved = ((hidden - self._hidden[part]) @ self._mean[part]).float() * self._backbone.logit_scale
        rest = self._log_rest[part, :, None] + moved
        return torch.cat([self._of_candidates(hidden, part), rest], -1)

    def logp(self, hidden: Tensor, part: slice = slice(None)) -> Tensor:
        """The same as log-probabilities."""
        return torch.log_softmax(self.logits(hidden, part), -1)

    def places(self, targets: Tensor) -> Tensor:
        """Token ids (C, M) -> their indices among the candidates (C, M)."""
        return torch.searchsorted(self._candidates, targets)

    def _of_candidates(self, hidden: Tensor, part: slice) -> Tensor:
        raw = hidden @ self._weight[part].mT
        if self._bias is not None:
            raw = raw + self._bias[part]
        return self._backbone.finish(raw).masked_fill(self._beyond[part, None], _NEVER)
