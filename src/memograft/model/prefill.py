"""One pass over the prompts: their keys and values, and the rows that memorizing trains on.

Nothing here depends on the last FFN, so the result is right for every memory and every mix of memories. The last prompt
token is left to decoding, whose first step it is. Knows nothing of text or memories.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache

from memograft.model.backbone import Backbone, cache_name, cache_of

__all__ = ["Prefill", "Prefix", "prefill", "prefill_behind", "prefill_prefix", "repeated", "run"]


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the first tokens of a prompt, to be reused under any memory.

    Attributes:
        ids: the P tokens.
        kv_cache: theirs, batch size 1; never written to, `prefill` copies it.
        x: FFN inputs (1, P, D).
        residual: (1, P, D).
    """

    ids: tuple[int, ...]
    kv_cache: Cache
    x: Tensor
    residual: Tensor


@dataclass(frozen=True)
class Prefill:
    """Prompts after one pass over all of their tokens but the last.

    Attributes:
        ids: (B, T) prompts, padded on the left (or right after a shared prefix).
        mask: (B, T) 1 where a token is real.
        kv_cache: keys and values of the first T - 1 tokens; None if T is 1.
        x: last-FFN inputs (B, T - 1, D).
        residual: what the rest of the last layer adds to the FFN's output (B, T - 1, D).
        cached: tokens per row that came from a prefix.
    """

    ids: Tensor
    mask: Tensor
    kv_cache: Cache | None
    x: Tensor
    residual: Tensor
    cached: int = 0

    def columns(self, row: int, positions: Sequence[int]) -> Tensor:
        """Where the tokens at `positions` of the unpadded prompt lie in (B, T)."""
        real = self.mask[row].nonzero().flatten()
        return real[torch.as_tensor(positions, dtype=torch.long, device=real.device)]


@torch.no_grad()
def prefill(backbone: Backbone, prompts: Sequence[Sequence[int]], pad_id: int, prefix: Prefix | None = None) -> Prefill:
    """Run the trunk over `prompts` (B lists of token ids); with `prefix`, which all start with, over the rest only."""
    head = len(prefix.ids) if prefix else 0
    rest = max(len(p) for p in prompts) - head
    device = backbone.device
    ids = torch.full((len(prompts), head + rest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        start = head + rest - (len(prompt) - head)
        ids[row, :head] = torch.as_tensor(prompt[:head], dtype=torch.long)
        ids[row, start:] = torch.as_tensor(prompt[head:], dtype=torch.long)
        mask[row, :head] = mask[row, start:] = 1
    ids, mask = ids.to(device), mask.to(device)
    cache, known = _spread(prefix, len(prompts))
    if rest <= 1:
        x, residual = known or (_empty(backbone, len(prompts)), _empty(backbone, len(prompts)))
        return Prefill(ids, mask, cache, x, residual, head)
    x, residual, cache = run(backbone, ids[:, head:-1], mask[:, :-1], cache, _positions(mask[:, :-1])[:, head:])
    if known is not None:
        x, residual = torch.cat([known[0], x], 1), torch.cat([known[1], residual], 1)
    return Prefill(ids, mask, cache, x, residual, head)


def prefill_behind(
    backbone: Backbone, filled: Prefill, prompts: Sequence[Sequence[int]], more: Sequence[Sequence[int]], pad_id: int
) -> Prefill:
    """One batch for decoding: the rows of `filled`, made of `prompts`, and behind them those of `more`."""
    layers = filled.kv_cache.layers if filled.kv_cache is not None else []
    # Keys and values of a sliding window cannot be moved against each other.
    if not layers or any(getattr(layer, "is_sliding", False) for layer in layers) or min(map(len, more)) < 2:
        return prefill(backbone, [*prompts, *more], pad_id)
    return _join(filled, prefill(backbone, more, pad_id))


def repeated(filled: Prefill, rows: Sequence[int]) -> Prefill:
    """One batch for decoding: the rows of `filled`, and behind them some of these rows once more."""
    index = torch.tensor([*range(len(filled.ids)), *rows], device=filled.ids.device)
    cache = _own_layers(filled.kv_cache)
    if cache is not None:
        cache.reorder_cache(index)  # a selection with repetitions
    return replace(filled, ids=filled.ids[index], mask=filled.mask[index], kv_cache=cache)


def _own_layers(cache: Cache | None) -> Cache | None:
    """The same keys and values in a cache of its own, whose layers can be given others."""
    own = copy.copy(cache)
    if own is not None:
        own.layers = [copy.copy(layer) for layer in own.layers]
    return own


def _join(above: Prefill, below: Prefill) -> Prefill:
    """The rows of both, the shorter padded on the left."""
    length = max(above.ids.shape[1], below.ids.shape[1])

    def left(part: Prefill, tensor: Tensor) -> Tensor:
        return functional.pad(tensor, (length - part.ids.shape[1], 0))

    cache = _own_layers(above.kv_cache)
    assert cache is not None
    assert below.kv_cache is not None
    for layer, other in zip(cache.layers, below.kv_cache.layers, strict=True):
        for name in ("keys", "values"):
            pair = ((above, getattr(layer, name)), (below, getattr(other, name)))
            setattr(layer, name, torch.cat([left(part, t.mT).mT for part, t in pair]))
    ids, mask = (
        torch.cat([left(above, a), left(below, b)]) for a, b in ((above.ids, below.ids), (above.mask, below.mask))
    )
    return Prefill(ids, mask, cache, above.x, above.residual, above.cached)


def prefill_prefix(backbone: Backbone, ids: Sequence[int]) -> Prefix:
    """Prefill the tokens `ids` (P of them, all) for later use as a prefix."""
    rows = torch.as_tensor(ids, dtype=torch.long, device=backbone.device)[None]
    with torch.no_grad():
        mask = torch.ones_like(rows)
        x, residual, cache = run(backbone, rows, mask, None, _positions(mask))
    return Prefix(tuple(ids), cache, x, residual)


def run(
    backbone: Backbone, ids: Tensor, mask: Tensor, cache: Cache | None, positions: Tensor
) -> tuple[Tensor, Tensor, Cache]:
    """Run the trunk over `ids` (B, T) behind what the cache holds; it is written to.

    Args:
        backbone: whose trunk it is.
        ids: token ids (B, T).
        mask: 1 for the tokens that may be seen, those in the cache first (B, cached + T).
        cache: of the tokens before, or None.
        positions: where each token stands in its prompt (B, T).

    Returns:
        x (B, T, D), residual (B, T, D), and the cache with these tokens in it.
    """
    forward = backbone.model.forward
    accepted = inspect.signature(forward).parameters
    extra: dict[str, Any] = {cache_name(forward): cache}
    if "position_ids" in accepted:
        extra["position_ids"] = positions
    if "logits_to_keep" in accepted:
        extra["logits_to_keep"] = 1  # the head is not wanted here, and it is the dearest part
    with backbone.watch() as seen:
        out = backbone.model(input_ids=ids, attention_mask=mask, use_cache=True, **extra)
    x, residual = seen.rows()
    return x, residual, cache_of(out)


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp_min(0)


def _spread(prefix: Prefix | None, rows: int) -> tuple[Cache | None, tuple[Tensor, Tensor] | None]:
    """A prefix's cache and its (x, residual), copied for `rows` rows."""
    if prefix is None:
        return None, None
    cache = copy.deepcopy(prefix.kv_cache)
    if rows > 1:
        cache.batch_repeat_interleave(rows)
    return cache, (prefix.x.expand(rows, -1, -1), prefix.residual.expand(rows, -1, -1))


def _empty(backbone: Backbone, rows: int) -> Tensor:
    dtype: Any = backbone.model.dtype
    return torch.zeros(rows, 0, backbone.width, dtype=dtype, device=backbone.device)
