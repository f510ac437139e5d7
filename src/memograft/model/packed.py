"""Several continuations of one cached text in one row, each attending to its own tokens and its own part of the cache.

          cache (K)          continuation 1   continuation 2
    1:    [1 1 1 0 0 0 1 1]  [causal]         [0]
    2:    [1 1 1 1 1 1 0 0]  [0]              [causal]

One row per continuation would copy the cache for each. A model takes part if it accepts a mask over queries and keys
(B, 1, Q, K + Q); this is found out once for each model by comparing a packed pass with a pass of one continuation.
"""

from __future__ import annotations

import copy
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache

from memograft.model.backbone import Backbone
from memograft.model.kv import can_join, window
from memograft.model.prefill import run

__all__ = ["attention", "copied", "packs"]

_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_BEFORE, _FIRST, _SECOND = (1, 2, 3), tuple(range(4, 20)), (5, 3, 2, 1)  # token ids: any will do


def attention(cached: Tensor, owner: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask of packed rows: 0 where a token attends, the lowest number of `dtype` elsewhere (B, 1, Q, K + Q).

    Args:
        cached: which columns of the cache each token attends to (B, Q, K).
        owner: the continuation that each token belongs to (B, Q). Padding needs a number too: a token that attends to
            nothing would become NaN, also in the rows of others.
        dtype: of the model.
    """
    own = (owner[:, :, None] == owner[:, None, :]).tril()
    seen = torch.cat([cached.bool(), own], 2)[:, None]
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def copied(cache: Cache) -> Cache:
    """A cache to append to. Cache layers replace their tensors and never write into them, so the original stays."""
    copy_ = copy.copy(cache)
    copy_.layers = [copy.copy(layer) for layer in cache.layers]
    return copy_


def packs(backbone: Backbone, cache: Cache) -> bool:
    """Whether continuations behind such a cache can be packed. Never behind a sliding window, which the mask lacks."""
    if window(cache) is not None or not can_join(cache):
        return False
    if backbone.model not in _known:
        _known[backbone.model] = _accepts(backbone)
    return _known[backbone.model]


@torch.no_grad()
def _accepts(backbone: Backbone) -> bool:
    """Compare the second of two packed continuations with itself alone, and with itself behind the first."""
    before, first, end = len(_BEFORE), len(_FIRST), len(_SECOND)

    def ids(*parts: tuple[int, ...]) -> Tensor:
        return torch.tensor([[n % backbone.vocabulary for part in parts for n in part]], device=backbone.device)

    def positions(*parts: tuple[int, ...]) -> Tensor:
        return torch.cat([before + torch.arange(len(part)) for part in parts])[None].to(backbone.device)

    def of_second(mask: Tensor, *parts: tuple[int, ...]) -> Tensor:
        x, _, _ = run(backbone, ids(*parts), mask.to(backbone.device), copied(cache), positions(*parts))
        return x[:, -end:].float()

    start = torch.arange(before, device=backbone.device)[None]
    _, _, cache = run(backbone, ids(_BEFORE), torch.ones_like(start), None, start)
    owner = torch.tensor([[0] * first + [1] * end])
    mask = attention(torch.ones(1, first + end, before), owner, backbone.model.dtype)
    try:
        packed = of_second(mask, _FIRST, _SECOND)
    except torch.OutOfMemoryError:
        raise  # says nothing about the model
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError):
        return False
    alone = of_second(torch.ones(1, before + end, dtype=torch.long), _SECOND)
    behind = of_second(torch.ones(1, before + first + end, dtype=torch.long), _FIRST, _SECOND)
    return bool((packed - alone).norm() < 0.2 * (behind - alone).norm())
