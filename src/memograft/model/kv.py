"""KV caches of batch rows: cut, join, pad and repeat them. All code about cache columns and positions is here.

    row 1   . . . . [ segment   ] . . a b c      segment: cached keys and values that come first, padded on the left
    row 2   . . [ segment       ] . a b c d      a b c: tokens of the row's own pass, also padded on the left
    row 3   . . . . . . . . . a b c d e f g      `mask` is 1 for segment and tokens, `text` is 1 for the prompt's tokens

A token's position is the number of columns before it with mask 1, plus its row's `shift`. Layers with a sliding window
count columns, so padding may be only in front of a row, or after it until `close` moves it. These layers keep only
their last columns.
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
from memograft.model.key_bias import BiasedLayer

__all__ = [
    "Piece",
    "Prefill",
    "Segment",
    "can_join",
    "chain",
    "close",
    "cut",
    "empty",
    "join",
    "joins",
    "newest",
    "nothing",
    "pairs",
    "picked",
    "positions",
    "reach",
    "spread",
    "whole",
    "window",
]


_KNOWN = (DynamicLayer, DynamicSlidingWindowLayer, BiasedLayer)  # layers whose columns can be cut and joined


@dataclass(frozen=True)
class Segment:
    """Keys and values that come before the rest of a prompt. They are valid with every memory, and are never modified.

    Attributes:
        ids: the tokens at the start of the prompt that the last columns belong to; empty if it does not replace tokens.
        kv_cache: keys and values of its P columns, batch size 1.
        x: FFN inputs (1, P, D); None if it replaces no tokens.
        residual: (1, P, D); None if it replaces no tokens.
        end: position of the next token. None means P; it differs if columns were removed or merged.
        read: how many of `ids` were prefilled for this request and were not cached.

    Raises:
        SettingsError: it has more tokens than columns, or tokens without x and residual.
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
    def nbytes(self) -> int:
        """Size of its tensors in bytes."""
        values = [value for layer in self.kv_cache.layers for value in vars(layer).values()]
        return sum(value.nbytes for value in [*values, self.x, self.residual] if isinstance(value, Tensor))

    @property
    def shift(self) -> int:
        """Difference between the position of the next token and the number of columns."""
        return 0 if self.end is None else self.end - self.length


@dataclass(frozen=True)
class Piece:
    """Some columns of one row, which `chain` appends to others, or of B rows. Never modified.

    Attributes:
        layers: keys and values of each layer, (B, H, P, head dimension).
        x: FFN inputs (B, P, D).
        residual: (B, P, D).
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    x: Tensor
    residual: Tensor

    @cached_property
    def nbytes(self) -> int:  # cached: hundreds are summed at each request
        """Size of all its tensors in bytes."""
        return sum(t.nbytes for t in (*(t for pair in self.layers for t in pair), self.x, self.residual))


@dataclass(frozen=True)
class Prefill:
    """Prompts after a pass over their tokens. The last one is kept apart, if it was run at all.

    Attributes:
        ids: (B, T) prompts; undefined where `text` is 0.
        mask: (B, T) 1 for tokens and for columns of segments that replace no tokens.
        text: (B, T) 1 for tokens of the prompt.
        kv_cache: keys and values of the first T - 1 columns; None if T is 1.
        x: last-FFN inputs (B, T - 1, D); undefined where `text` is 0.
        residual: what the FFN's output is added to (B, T - 1, D).
        cached: for each row, the number of tokens that its segment saved.
        shifts: for each row, the difference between positions and columns after its segment.
        last: the last token of each prompt, if it was run: then the first new token needs no pass.
    """

    ids: Tensor
    mask: Tensor
    text: Tensor
    kv_cache: Cache | None
    x: Tensor
    residual: Tensor
    cached: tuple[int, ...]
    shifts: tuple[int, ...]
    last: Piece | None = None

    @property
    def positions(self) -> Tensor:
        """(B, T) position of each token, valid after a segment."""
        return positions(self.mask, self.shifts)

    def columns(self, row: int, positions: Sequence[int]) -> Tensor:
        """The columns in (B, T) of the tokens at `positions` of the unpadded prompt."""
        real = self.text[row].nonzero().flatten()
        return real[torch.as_tensor(positions, dtype=torch.long, device=real.device)]


def positions(mask: Tensor, shifts: Sequence[int] = ()) -> Tensor:
    """(B, T) mask -> the position of each column's token (B, T), shifted per row."""
    columns = mask.cumsum(-1) - 1
    if any(shifts):
        columns = columns + torch.tensor(shifts, device=mask.device)[:, None]
    return columns.clamp_min(0)


def can_join(cache: Cache | None) -> bool:
    """Whether rows of the cache can be padded and joined with others, because it has only keys and values."""
    return cache is None or all(type(layer) in _KNOWN and layer.is_initialized for layer in cache.layers)


def joins(backbone: Backbone) -> bool:
    """Whether the model's caches have only keys and values; see `can_join`."""
    return all(type(layer) in _KNOWN for layer in empty(backbone).layers)


def window(cache: Cache) -> int | None:
    """Width of the shortest sliding window in columns; None without a sliding window."""
    return min((layer.sliding_window for layer in cache.layers if getattr(layer, "is_sliding", False)), default=None)


def reach(backbone: Backbone) -> int | None:
    """`window` of the model's caches. Also None if they have more than keys and values."""
    return window(empty(backbone)) if joins(backbone) else None


def pairs(cache: Cache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer. These tensors are never modified."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def spread(backbone: Backbone, segments: Sequence[Segment]) -> tuple[Cache, Tensor, Tensor, Tensor]:
    """One cache with a row per segment, padded on the left; its mask (B, C), x and residual (B, C, D)."""
    if can_join(segments[0].kv_cache):
        length = max(segment.length for segment in segments)
        cache = _side_by_side(backbone, [(segment.kv_cache, [n]) for n, segment in enumerate(segments)], length)
    else:  # all rows have the same segment
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
    """x or residual (B, T, D) of columns that were not computed, as zeros."""
    dtype: Any = backbone.model.dtype
    return torch.zeros(rows, columns, backbone.width, dtype=dtype, device=backbone.device)


def close(backbone: Backbone, filled: Prefill, before: Sequence[tuple[Tensor, Tensor]], new: int) -> Prefill:
    """Move all padding of the rows to the front, after a pass over `new` columns that had padding at its end.

    Args:
        backbone: the model.
        filled: the result of the pass.
        before: `pairs` of the cache before the pass; sliding windows may have dropped some of its columns since.
        new: less than the width of any sliding window, so that these columns are still in the cache.
    """
    assert filled.kv_cache is not None
    order = filled.mask[:, :-1].argsort(dim=1, stable=True)  # padding first, the rest in the same order
    if bool((order.diff() > 0).all()):
        return filled
    columns = order.shape[1]
    cache = empty(backbone)
    for n, (old, now) in enumerate(zip(before, pairs(filled.kv_cache), strict=True)):
        whole = [torch.cat([a, b[:, :, -new:]], 2) for a, b in zip(old, now, strict=True)]
        bias = getattr(filled.kv_cache.layers[n], "bias", None)
        padded = [
            functional.pad(t, (0, 0, columns - t.shape[2], 0)) for t in (*whole, *([] if bias is None else [bias]))
        ]
        places = order.to(padded[0].device)[:, None, :, None]
        moved = [t.take_along_dim(places, 2) for t in padded]
        if bias is None:
            cache.update(*moved, n)
        else:
            cache.layers[n] = BiasedLayer(*moved)
    last = torch.full_like(order[:, :1], columns)  # the last token is not in the cache
    own = {
        name: getattr(filled, name).take_along_dim(torch.cat([order, last], 1), 1) for name in ("ids", "mask", "text")
    }
    for name in ("x", "residual"):
        states: Tensor = getattr(filled, name)
        own[name] = states.take_along_dim(order.to(states.device)[..., None], 1)
    return replace(filled, **own, kv_cache=cache)


def cut(filled: Prefill, row: int, start: int, end: int) -> Piece | None:
    """The columns of tokens `start` to `end` of a row's prompt, for prompts that begin with the same `end` tokens.

    None if a sliding window has dropped some of them, if the row has a segment that replaces no tokens of its prompt,
    or if its keys were compacted.
    """
    cache = filled.kv_cache
    if cache is None or not can_join(cache):
        return None
    if filled.shifts[row] or not torch.equal(filled.mask[row], filled.text[row]):
        return None
    if any(bool(b[row].any()) for layer in cache.layers if (b := getattr(layer, "bias", None)) is not None):
        return None  # some of its keys were left out
    columns, count = filled.columns(row, range(start, end)), filled.mask.shape[1] - 1
    if any(keys.shape[2] < count - int(columns[0]) for keys, _ in pairs(cache)):
        return None

    def own(tensor: Tensor) -> Tensor:
        return tensor[row : row + 1, :, columns.to(tensor.device) - (count - tensor.shape[2])]

    x, residual = (t[row : row + 1, columns.to(t.device)] for t in (filled.x, filled.residual))
    return Piece(tuple((own(keys), own(values)) for keys, values in pairs(cache)), x, residual)


def newest(cache: Cache, x: Tensor, residual: Tensor) -> Piece:
    """The columns that a pass of one row added to a cache, with its (x, residual). They must fit any sliding window."""
    count = x.shape[1]
    return Piece(tuple((keys[:, :, -count:], values[:, :, -count:]) for keys, values in pairs(cache)), x, residual)


def whole(pieces: Sequence[Piece]) -> Piece:
    """Join consecutive pieces."""
    layers = []
    for parts in zip(*(piece.layers for piece in pieces), strict=True):
        keys, values = zip(*parts, strict=True)
        layers.append((torch.cat(keys, 2), torch.cat(values, 2)))
    return Piece(tuple(layers), torch.cat([p.x for p in pieces], 1), torch.cat([p.residual for p in pieces], 1))


def chain(backbone: Backbone, ids: Sequence[int], pieces: Sequence[Piece], read: int = 0) -> Segment:
    """Make a segment of a prompt's first pieces; `ids` are their tokens, `read` is the segment's."""
    cache, piece = empty(backbone), whole(pieces)
    for n, (keys, values) in enumerate(piece.layers):
        cache.update(keys, values, n)  # sliding windows keep only their last columns
    return Segment(tuple(ids), cache, piece.x, piece.residual, read=read)


def join(backbone: Backbone, parts: Sequence[tuple[Prefill, Sequence[int]]]) -> Prefill:
    """Join batches, each with the row numbers its rows get; shorter ones are padded on the left."""
    length = max(part.ids.shape[1] for part, _ in parts)
    count = sum(len(places) for _, places in parts)
    order = torch.tensor([place for _, places in parts for place in places]).argsort()

    def rows(name: str, columns: int) -> Tensor:
        tensors = [getattr(part, name) for part, _ in parts]
        tail = (0, 0) * (tensors[0].ndim - 2)  # D of x and residual is not padded
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
    ends = [part.last for part, _ in parts if part.last is not None]
    last = _rows_of(ends, order) if len(ends) == len(parts) else None
    return Prefill(**own, kv_cache=cache, **states, cached=numbers("cached"), shifts=numbers("shifts"), last=last)


def picked(filled: Prefill, rows: Sequence[int]) -> Prefill:
    """A batch of some of the rows of `filled`, in this order; rows may be repeated."""
    index = torch.tensor(rows, device=filled.ids.device)
    cache = copy.copy(filled.kv_cache)
    if cache is not None:
        cache.layers = [copy.copy(layer) for layer in cache.layers]  # reorder_cache replaces their tensors
        cache.reorder_cache(index)  # also to more or fewer rows
    own = {name: (t := getattr(filled, name))[index.to(t.device)] for name in ("ids", "mask", "text", "x", "residual")}
    cached, shifts = (tuple(of[row] for row in rows) for of in (filled.cached, filled.shifts))
    last = filled.last and _rows_of([filled.last], index)
    return replace(filled, **own, kv_cache=cache, cached=cached, shifts=shifts, last=last)


def _rows_of(pieces: Sequence[Piece], order: Tensor) -> Piece:
    """The rows of some pieces, in this order."""

    def rows(*tensors: Tensor) -> Tensor:
        return torch.cat(tensors)[order.to(tensors[0].device)]

    layers = [tuple(zip(*own, strict=True)) for own in zip(*(piece.layers for piece in pieces), strict=True)]
    return Piece(
        tuple((rows(*keys), rows(*values)) for keys, values in layers),
        rows(*(p.x for p in pieces)),
        rows(*(p.residual for p in pieces)),
    )


def _side_by_side(
    backbone: Backbone, caches: Sequence[tuple[Cache, Sequence[int]]], length: int, count: int | None = None
) -> Cache:
    """One cache of `length` columns with the rows of several caches, padded on the left."""
    count = sum(len(places) for _, places in caches) if count is None else count
    joined = empty(backbone)
    for n, layers in enumerate(zip(*(cache.layers for cache, _ in caches), strict=True)):
        found = []
        for name in ("keys", "values", "bias"):
            tensors = [
                (tensor, places)
                for layer, (_, places) in zip(layers, caches, strict=True)
                if (tensor := getattr(layer, name, None)) is not None
            ]
            if not tensors:
                continue
            like: Tensor = tensors[0][0]
            together = like.new_zeros(count, like.shape[1], length, like.shape[3])
            for own, places in tensors:  # with a sliding window, only the last columns
                if own.shape[2]:
                    together[list(places), :, -own.shape[2] :] = own
            found.append(together)
        if len(found) > 2:
            joined.layers[n] = BiasedLayer(*found)
        else:
            joined.update(*found, n)  # sliding windows keep only their last columns
    return joined


def empty(backbone: Backbone) -> DynamicCache:
    """A cache of the model's layers, without columns."""
    config: PretrainedConfig = backbone.model.config
    return DynamicCache(config=config.get_text_config(decoder=True))


def _left(row: Tensor, length: int) -> Tensor:
    return functional.pad(row, (length - row.shape[0], 0))
