"""Keys and values of rows: cut, joined, padded, repeated. All that is known about their columns and positions is here.

    row 1   . . . . [ segment   ] . . a b c      a segment: keys and values that were there before the prompt is read,
    row 2   . . [ segment       ] . a b c d      padded on the left; what the row reads itself, padded on the left too
    row 3   . . . . . . . . . a b c d e f g      `mask` is 0 where nothing is; `text` is 1 where a token of the prompt

A token's position is the number of columns before it that hold something. Layers with a sliding window count columns,
so there padding may stand only in front of all that a row has; they keep their last columns alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache, DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from memograft.model.backbone import Backbone

__all__ = ["Prefill", "Segment", "can_join", "join", "positions", "repeated", "slides", "spread"]


@dataclass(frozen=True)
class Segment:
    """Keys and values that stand before what a row still has to read, under any memory. Never written to.

    Attributes:
        ids: the tokens of the prompt that they are of, P of them; none where they stand for no tokens of it.
        kv_cache: theirs, batch size 1.
        x: FFN inputs (1, P, D).
        residual: (1, P, D).
    """

    ids: tuple[int, ...]
    kv_cache: Cache
    x: Tensor
    residual: Tensor

    @property
    def length(self) -> int:
        """Columns it takes, and the position of the token behind it."""
        return int(self.kv_cache.get_seq_length())

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        pairs = [t for layer in self.kv_cache.layers for t in (layer.keys, layer.values) if isinstance(t, Tensor)]
        return sum(t.nbytes for t in (*pairs, self.x, self.residual))


@dataclass(frozen=True)
class Prefill:
    """Prompts after one pass over all of their tokens but the last.

    Attributes:
        ids: (B, T) prompts, and whatever stands where `text` is 0.
        mask: (B, T) 1 where a column holds something, a token or an entry of a segment that stands for none.
        text: (B, T) 1 where a token of the prompt is.
        kv_cache: keys and values of the first T - 1 columns; None if T is 1.
        x: last-FFN inputs (B, T - 1, D); 0 where no token is.
        residual: what the rest of the last layer adds to the FFN's output (B, T - 1, D).
        cached: for each row, tokens that came from its segment.
    """

    ids: Tensor
    mask: Tensor
    text: Tensor
    kv_cache: Cache | None
    x: Tensor
    residual: Tensor
    cached: tuple[int, ...]

    def columns(self, row: int, positions: Sequence[int]) -> Tensor:
        """Where the tokens at `positions` of the unpadded prompt lie in (B, T)."""
        real = self.text[row].nonzero().flatten()
        return real[torch.as_tensor(positions, dtype=torch.long, device=real.device)]


def positions(mask: Tensor) -> Tensor:
    """(B, T) -> the position of each column's token (B, T)."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


def can_join(cache: Cache | None) -> bool:
    """Whether rows of the cache can be padded and put beside others: keys and values, and no running states."""
    known = (DynamicLayer, DynamicSlidingWindowLayer)
    return cache is None or all(type(layer) in known and layer.is_initialized for layer in cache.layers)


def slides(cache: Cache | None) -> bool:
    """Whether a layer has a sliding window."""
    return cache is not None and any(getattr(layer, "is_sliding", False) for layer in cache.layers)


def spread(backbone: Backbone, segments: Sequence[Segment]) -> tuple[Cache, Tensor, Tensor, Tensor]:
    """One cache for a row per segment, each padded on the left; its mask (B, C), x and residual (B, C, D)."""
    same = all(segment is segments[0] for segment in segments)
    if same and not can_join(segments[0].kv_cache):
        cache = copy.deepcopy(segments[0].kv_cache)
        if len(segments) > 1:
            cache.batch_repeat_interleave(len(segments))
    else:
        length = max(segment.length for segment in segments)
        cache = _side_by_side(backbone, [(segment.kv_cache, [n]) for n, segment in enumerate(segments)], length)
    length = cache.get_seq_length()
    mask = torch.stack([_left(torch.ones(s.length, dtype=torch.long), length) for s in segments]).to(backbone.device)

    def rows(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([functional.pad(t, (0, 0, length - t.shape[1], 0)) for t in tensors])

    return cache, mask, rows([s.x for s in segments]), rows([s.residual for s in segments])


def join(backbone: Backbone, parts: Sequence[tuple[Prefill, Sequence[int]]]) -> Prefill:
    """One batch of several, each with the places its rows take; the shorter are padded on the left."""
    length = max(part.ids.shape[1] for part, _ in parts)
    count = sum(len(places) for _, places in parts)
    order = torch.tensor([place for _, places in parts for place in places]).argsort()

    def rows(name: str, columns: int) -> Tensor:
        tensors = [getattr(part, name) for part, _ in parts]
        tail = (0, 0) * (tensors[0].ndim - 2)  # of x and residual: the width
        padded = [functional.pad(t, (*tail, columns - t.shape[1], 0)) for t in tensors]
        together = torch.cat(padded)
        return together[order.to(together.device)]

    cached = [0] * count
    for part, places in parts:
        for place, number in zip(places, part.cached, strict=True):
            cached[place] = number
    caches = [(part.kv_cache, places) for part, places in parts if part.kv_cache is not None]
    cache = _side_by_side(backbone, caches, length - 1, count) if caches else None
    own = {name: rows(name, length) for name in ("ids", "mask", "text")}
    states = {name: rows(name, length - 1) for name in ("x", "residual")}
    return Prefill(**own, kv_cache=cache, **states, cached=tuple(cached))


def repeated(filled: Prefill, rows: Sequence[int]) -> Prefill:
    """One batch for decoding: the rows of `filled`, and behind them some of these rows once more."""
    index = torch.tensor([*range(len(filled.ids)), *rows], device=filled.ids.device)
    cache = copy.copy(filled.kv_cache)
    if cache is not None:
        cache.layers = [copy.copy(layer) for layer in cache.layers]  # which can be given others
        cache.reorder_cache(index)  # a selection with repetitions
    own = {name: (t := getattr(filled, name))[index.to(t.device)] for name in ("ids", "mask", "text", "x", "residual")}
    cached = (*filled.cached, *(filled.cached[row] for row in rows))
    return replace(filled, **own, kv_cache=cache, cached=cached)


def _side_by_side(
    backbone: Backbone, caches: Sequence[tuple[Cache, Sequence[int]]], length: int, count: int | None = None
) -> Cache:
    """One cache of `length` columns, into whose rows the others' rows go, padded on the left."""
    count = sum(len(places) for _, places in caches) if count is None else count
    config: PretrainedConfig = backbone.model.config
    joined = DynamicCache(config=config.get_text_config(decoder=True))
    for n, layer in enumerate(caches[0][0].layers):
        pair = []
        for name in ("keys", "values"):
            like: Tensor = getattr(layer, name)
            together = like.new_zeros(count, like.shape[1], length, like.shape[3])
            for cache, places in caches:
                own: Tensor = getattr(cache.layers[n], name)  # of a sliding window: the last columns
                if own.shape[2]:
                    together[list(places), :, -own.shape[2] :] = own
            pair.append(together)
        joined.update(*pair, n)  # a sliding window keeps what it needs of it
    return joined


def _left(row: Tensor, length: int) -> Tensor:
    return functional.pad(row, (length - row.shape[0], 0))
