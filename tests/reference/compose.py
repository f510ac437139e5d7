"""Composed memories, directly: the mean of the documents' weight changes as matrices, added to the weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def composed(model: nn.Module, trained: Sequence[nn.Module], names: Sequence[str]) -> nn.Module:
    """`model` with the mean change of these modules' weights in the trained copies."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            base = model.get_submodule(name).weight
            changes = torch.stack([other.get_submodule(name).weight - base for other in trained])
            twin.get_submodule(name).weight += changes.mean(0)
    return twin


@torch.no_grad()
def losses(model: nn.Module, twin: nn.Module, ids: Sequence[int], context: Sequence[int]) -> tuple[Tensor, float]:
    """Cross-entropy of the tokens at the positions `context` of `ids` under `twin`, and its mean KL from `model`."""
    tokens, places = torch.tensor([list(ids)]), torch.tensor(context)
    before, after = (
        F.log_softmax(m(input_ids=tokens, use_cache=False).logits[0, places - 1].float(), -1) for m in (model, twin)
    )
    kl = float(F.kl_div(after, before, log_target=True, reduction="batchmean"))
    return F.nll_loss(after, tokens[0, places], reduction="none"), kl
