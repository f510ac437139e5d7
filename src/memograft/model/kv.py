"""Keys and values of rows: cut, joined, padded, repeated. All that is known about their columns and positions is here.

    row 1   . . . . [ segment   ] . . a b c      a segment: keys and values that were there before the prompt is read,
    row 2   . . [ segment       ] . a b c d      padded on the left; what the row reads itself, padded on the left too
    row 3   . . . . . . . . . a b c d e f g      `mask` is 0 where nothing is; `text` is 1 where a token of the prompt

A token's position is the number of columns before it that hold something, and its row's `shift` more. Layers with a
sliding window count columns, so there padding may stand only in front of all that a row has, or behind it until it is
closed up; they keep their last columns alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache, DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from memograft.errors import SettingsError
from memograft.model.backbone import Backbone

__all__ = [
    "Piece",
    "Prefill",
    "Segment",
    "can_join",
    "chain",
    "close",
    "cut",
    "join",
    "newest",
    "nothing",
    "pairs",
    "positions",
    "reach",
    "repeated",
    "spread",
    "whole",
    "window",
]


_KNOWN = (DynamicLayer, DynamicSlidingWindowLayer)  # layers whose columns can be cut and put beside others


@dataclass(frozen=True)
class Segment:
    """Keys and values that stand before what a row still has to read, under any memory. Never written to.

    Attributes:
        ids: the tokens that the prompt begins with and that its last columns are of; none where it stands for none.
        kv_cache: keys and values of its P columns, batch size 1.
        x: FFN inputs (1, P, D); None where it stands for no tokens.
        residual: (1, P, D); None where it stands for no tokens.
        end: position of the token behind it; P where it is None. Another one if columns were left out or put together.
        read: how many of `ids` were read for this very row, which is spared the others.

    Raises:
        SettingsError: it stands for more tokens than it has columns, or for tokens without x and residual.
    """

    ids: tuple[int, ...]
    kv_cache: Cache
    x: Tensor | None = None
    residual: Tensor | None = None
    end: int | None = None
    read: int = 0

    def __post_init__(self) -> None:
        if len(self.ids) > self.length:
            raise SettingsError(
                f"a segment of {self.length} columns cannot stand for {len(self.ids)} tokens; keep a column for each, "
                "or give it no `ids` and leave its tokens out of the prompt"
            )
        if self.ids and (self.x is None or self.residual is None):
            raise SettingsError(
                f"a segment that stands for {len(self.ids)} tokens needs their x and residual; take those of the pass "
                "that made it"
            )

    @property
    def length(self) -> int:
        """P."""
        return int(self.kv_cache.get_seq_length())

    @property
    def shift(self) -> int:
        """How much further on the token behind it stands than its columns say."""
        return 0 if self.end is None else self.end - self.length


@dataclass(frozen=True)
class Piece:
    """Some columns of one row, which `chain` puts behind others. Never written to.

    Attributes:
        layers: keys and values of each layer, (1, H, P, head dimension).
        x: FFN inputs (1, P, D).
        residual: (1, P, D).
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    x: Tensor
    residual: Tensor

    @cached_property
    def nbytes(self) -> int:  # summed over hundreds of pieces at each request
        """Bytes of all its tensors."""
        return sum(t.nbytes for t in (*(t for pair in self.layers for t in pair), self.x, self.residual))


@dataclass(frozen=True)
class Prefill:
    """Prompts after one pass over all of their tokens but the last.

    Attributes:
        ids: (B, T) prompts, and whatever stands where `text` is 0.
        mask: (B, T) 1 where a column holds something, a token or an entry of a segment that stands for none.
        text: (B, T) 1 where a token of the prompt is.
        kv_cache: keys and values of the first T - 1 columns; None if T is 1.
        x: last-FFN inputs (B, T - 1, D), and whatever stands where `text` is 0.
        residual: what the rest of the last layer adds to the FFN's output (B, T - 1, D).
        cached: for each row, tokens that it was spared by its segment.
        shifts: for each row, how much further on its tokens behind the segment stand than the columns say.
    """

    ids: Tensor
    mask: Tensor
    text: Tensor
    kv_cache: Cache | None
    x: Tensor
    residual: Tensor
    cached: tuple[int, ...]
    shifts: tuple[int, ...]

    @property
    def positions(self) -> Tensor:
        """(B, T) where the tokens stand, those behind a segment."""
        return positions(self.mask, self.shifts)

    def columns(self, row: int, positions: Sequence[int]) -> Tensor:
        """Where the tokens at `positions` of the unpadded prompt lie in (B, T)."""
        real = self.text[row].nonzero().flatten()
        return real[torch.as_tensor(positions, dtype=torch.long, device=real.device)]


def positions(mask: Tensor, shifts: Sequence[int] = ()) -> Tensor:
    """(B, T) -> the position of each column's token (B, T), each row's shifted."""
    columns = mask.cumsum(-1) - 1
    if any(shifts):
        columns = columns + torch.tensor(shifts, device=mask.device)[:, None]
    return columns.clamp_min(0)


def can_join(cache: Cache | None) -> bool:
    """Whether rows of the cache can be padded and put beside others: keys and values are all that it holds."""
    return cache is None or all(type(layer) in _KNOWN and layer.is_initialized for layer in cache.layers)


def window(cache: Cache) -> int | None:
    """Columns that the shortest sliding window reaches over; None if there is no sliding window."""
    return min((layer.sliding_window for layer in cache.layers if getattr(layer, "is_sliding", False)), default=None)


def reach(backbone: Backbone) -> int | None:
    """`window` of the model's caches; None also where they hold more than keys and values."""
    cache = _empty(backbone)
    return window(cache) if all(type(layer) in _KNOWN for layer in cache.layers) else None


def pairs(cache: Cache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer; none of these tensors is ever written to."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def spread(backbone: Backbone, segments: Sequence[Segment]) -> tuple[Cache, Tensor, Tensor, Tensor]:
    """One cache for a row per segment, each padded on the left; its mask (B, C), x and residual (B, C, D)."""
    if can_join(segments[0].kv_cache):
        length = max(segment.length for segment in segments)
        cache = _side_by_side(backbone, [(segment.kv_cache, [n]) for n, segment in enumerate(segments)], length)
    else:  # one and the same for all
        cache, length = copy.deepcopy(segments[0].kv_cache), segments[0].length
        if len(segments) > 1:
            cache.batch_repeat_interleave(len(segments))
    mask = torch.stack([_left(torch.ones(s.length, dtype=torch.long), length) for s in segments]).to(backbone.device)

    def rows(tensors: Sequence[Tensor | None]) -> Tensor:
        own = [tensor for tensor in tensors if tensor is not None]
        states = nothing(backbone, len(tensors), length)
        states = states.to(own[0]) if own else states
        for row, tensor in zip(states, tensors, strict=True):
            if tensor is not None:
                row[length - tensor.shape[1] :] = tensor[0]
        return states

    return cache, mask, rows([s.x for s in segments]), rows([s.residual for s in segments])


def nothing(backbone: Backbone, rows: int, columns: int) -> Tensor:
    """x or residual (B, T, D) of columns that were not read."""
    dtype: Any = backbone.model.dtype
    return torch.zeros(rows, columns, backbone.width, dtype=dtype, device=backbone.device)


def close(backbone: Backbone, filled: Prefill, before: Sequence[tuple[Tensor, Tensor]], new: int) -> Prefill:
    """The same rows with all of their padding in front, after a pass over `new` columns that had some at its end.

    Args:
        backbone: whose pass it was.
        filled: what came of it.
        before: `pairs` of the cache before the pass, of which sliding windows may have forgotten some columns since.
        new: fewer than any sliding window reaches over, so that all of these are still there.
    """
    assert filled.kv_cache is not None
    order = filled.mask[:, :-1].argsort(dim=1, stable=True)  # what holds nothing first, and the rest as it stood
    if bool((order.diff() > 0).all()):
        return filled
    columns = order.shape[1]
    cache = _empty(backbone)
    for n, (old, now) in enumerate(zip(before, pairs(filled.kv_cache), strict=True)):
        whole = [torch.cat([a, b[:, :, -new:]], 2) for a, b in zip(old, now, strict=True)]
        padded = [functional.pad(t, (0, 0, columns - t.shape[2], 0)) for t in whole]
        places = order.to(padded[0].device)[:, None, :, None]
        cache.update(*(t.take_along_dim(places, 2) for t in padded), n)
    last = torch.full_like(order[:, :1], columns)  # is still to be read
    own = {
        name: getattr(filled, name).take_along_dim(torch.cat([order, last], 1), 1) for name in ("ids", "mask", "text")
    }
    for name in ("x", "residual"):
        states: Tensor = getattr(filled, name)
        own[name] = states.take_along_dim(order.to(states.device)[..., None], 1)
    return replace(filled, **own, kv_cache=cache)


def cut(filled: Prefill, row: int, start: int, end: int) -> Piece | None:
    """Tokens `start` to `end` of a row's prompt, for others that begin with the same `end` tokens.

    None where a sliding window has forgotten some, or the row stands behind what is no token of its prompt.
    """
    cache = filled.kv_cache
    if cache is None or not can_join(cache):
        return None
    if filled.shifts[row] or not torch.equal(filled.mask[row], filled.text[row]):
        return None
    columns, count = filled.columns(row, range(start, end)), filled.mask.shape[1] - 1
    if any(keys.shape[2] < count - int(columns[0]) for keys, _ in pairs(cache)):
        return None

    def own(tensor: Tensor) -> Tensor:
        return tensor[row : row + 1, :, columns.to(tensor.device) - (count - tensor.shape[2])]

    x, residual = (t[row : row + 1, columns.to(t.device)] for t in (filled.x, filled.residual))
    return Piece(tuple((own(keys), own(values)) for keys, values in pairs(cache)), x, residual)


def newest(cache: Cache, x: Tensor, residual: Tensor) -> Piece:
    """What a pass of one row has added to a cache, with its (x, residual); no more than any sliding window keeps."""
    count = x.shape[1]
    return Piece(tuple((keys[:, :, -count:], values[:, :, -count:]) for keys, values in pairs(cache)), x, residual)


def whole(pieces: Sequence[Piece]) -> Piece:
    """One piece of several that follow each other."""
    layers = []
    for parts in zip(*(piece.layers for piece in pieces), strict=True):
        keys, values = zip(*parts, strict=True)
        layers.append((torch.cat(keys, 2), torch.cat(values, 2)))
    return Piece(tuple(layers), torch.cat([p.x for p in pieces], 1), torch.cat([p.residual for p in pieces], 1))


def chain(backbone: Backbone, ids: Sequence[int], pieces: Sequence[Piece], read: int = 0) -> Segment:
    """The segment of a prompt's first pieces; `ids` are the tokens of all of them, `read` is the segment's."""
    cache, piece = _empty(backbone), whole(pieces)
    for n, (keys, values) in enumerate(piece.layers):
        cache.update(keys, values, n)  # a sliding window keeps what it needs of it
    return Segment(tuple(ids), cache, piece.x, piece.residual, read=read)


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

    def numbers(name: str) -> tuple[int, ...]:
        together = [number for part, _ in parts for number in getattr(part, name)]
        return tuple(together[place] for place in order.tolist())

    caches = [(part.kv_cache, places) for part, places in parts if part.kv_cache is not None]
    cache = _side_by_side(backbone, caches, length - 1, count) if caches else None
    own = {name: rows(name, length) for name in ("ids", "mask", "text")}
    states = {name: rows(name, length - 1) for name in ("x", "residual")}
    return Prefill(**own, kv_cache=cache, **states, cached=numbers("cached"), shifts=numbers("shifts"))


def repeated(filled: Prefill, rows: Sequence[int]) -> Prefill:
    """One batch for decoding: the rows of `filled`, and behind them some of these rows once more."""
    index = torch.tensor([*range(len(filled.ids)), *rows], device=filled.ids.device)
    cache = copy.copy(filled.kv_cache)
    if cache is not None:
        cache.layers = [copy.copy(layer) for layer in cache.layers]  # which can be given others
        cache.reorder_cache(index)  # a selection with repetitions
    own = {name: (t := getattr(filled, name))[index.to(t.device)] for name in ("ids", "mask", "text", "x", "residual")}
    cached, shifts = ((*of, *(of[row] for row in rows)) for of in (filled.cached, filled.shifts))
    return replace(filled, **own, kv_cache=cache, cached=cached, shifts=shifts)


def _side_by_side(
    backbone: Backbone, caches: Sequence[tuple[Cache, Sequence[int]]], length: int, count: int | None = None
) -> Cache:
    """One cache of `length` columns, into whose rows the others' rows go, padded on the left."""
    count = sum(len(places) for _, places in caches) if count is None else count
    joined = _empty(backbone)
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


def _empty(backbone: Backbone) -> DynamicCache:
    config: PretrainedConfig = backbone.model.config
    return DynamicCache(config=config.get_text_config(decoder=True))


def _left(row: Tensor, length: int) -> Tensor:
    return functional.pad(row, (length - row.shape[0], 0))
