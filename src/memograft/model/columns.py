"""Keys and values of rows that are being decoded, which rows join and leave at any step.

    row 1   . . . a b c d e | f .      `start` to `end`: the columns that a step attends to
    row 2   . . . . . a b c | d .      a step writes its tokens at `end`, in place
    row 3   . . a b . c d e | f .      a column without a token, after a rejected draft: masked

A transformers cache copies all columns for each new token; here a step writes only its own. Columns are numbered from
the first batch on, so a longer row that joins later can begin at a negative column.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from memograft.model.backbone import Backbone
from memograft.model.kv import Prefill, can_join, empty
from memograft.model.packed import attention, packs

__all__ = ["Columns", "Fixed", "columns_of"]

_SLACK = 64  # columns that a buffer is larger than needed


class _Buffer:
    """A tensor (R, ..., C, d) whose columns have the numbers `base` to `base` + C."""

    def __init__(self, like: Tensor) -> None:
        self.base = 0
        self.data = like.new_zeros(0, *like.shape[1:-2], 0, like.shape[-1])

    def make_room(self, rows: int, start: int, end: int) -> None:
        """Make it hold `rows` rows and the columns from `start` to `end`; what it held there is kept, the rest is 0."""
        old, columns = self.data, self.data.shape[-2]
        if rows <= len(old) and self.base <= start and end <= self.base + columns:
            return
        shape = (max(rows, len(old)), *old.shape[1:-2], end - start + _SLACK + (end - start) // 8, old.shape[-1])
        self.data = old.new_zeros(shape)  # zeros: a masked NaN would still be NaN
        first, last = max(start, self.base), min(end, self.base + columns)
        if first < last:
            self.data[: len(old), ..., first - start : last - start, :] = old[
                ..., first - self.base : last - self.base, :
            ]
        self.base = start

    def clear(self) -> None:
        """Free its memory."""
        self.data = self.data.new_zeros(0, *self.data.shape[1:-2], 0, self.data.shape[-1])

    def span(self, first: int, last: int) -> Tensor:
        """The columns `first` to `last` of all rows, as a view."""
        return self.data[..., first - self.base : last - self.base, :]


class _Layer(DynamicLayer):  # type: ignore[misc]
    """A layer of the cache: it writes into its buffers, and returns views of them."""

    def __init__(self, columns: Columns, sliding: int | None) -> None:
        super().__init__()
        self._columns, self.sliding_window, self.is_sliding = columns, sliding, sliding is not None
        # Of keys and values, made at the first call, and of a `BiasedLayer`'s numbers, once a row has some.
        self.buffers: list[_Buffer] = []

    @property
    def first(self) -> int:
        """The first column that the next token attends to."""
        at = self._columns
        return at.start if self.sliding_window is None else max(at.start, at.end - self.sliding_window + 1)

    def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """(N, H, Q, d) of the rows of this pass -> all that they attend to (N, H, K, d)."""
        at = self._columns
        last, rows = at.end + keys.shape[2], at.part
        self._begin(keys, values)
        for buffer in self.buffers:
            buffer.make_room(at.rows, self.first, last)
        for buffer, new in zip(self.buffers, (keys, values), strict=False):
            buffer.span(at.end, last)[rows] = new
        found = [buffer.span(self.first, last)[rows] for buffer in self.buffers[:2]]
        return found[0], found[1]

    def _begin(self, keys: Tensor, values: Tensor) -> None:
        if not self.buffers:
            self.buffers, self.is_initialized = [_Buffer(keys), _Buffer(values)], True

    @property
    def bias(self) -> Tensor | None:
        """The numbers of a `BiasedLayer` for the rows of this pass (N, H, C, 1), if a row has some."""
        at = self._columns
        return self.buffers[2].span(self.first, at.end)[at.part] if len(self.buffers) > 2 else None

    def put(self, rows: slice, own: CacheLayerMixin, last: tuple[Tensor, Tensor] | None, width: int) -> None:
        """Add these new rows: the last columns of a prefill's layer and its `last` one, at most `width`."""
        tensors, bias = [own.keys, own.values], getattr(own, "bias", None)
        if last is not None:
            tensors = [torch.cat(pair, 2) for pair in zip(tensors, last, strict=True)]
            bias = bias if bias is None else nn.functional.pad(bias, (0, 0, 0, 1))
        self._begin(*tensors)
        if bias is not None and len(self.buffers) < 3:
            self.buffers.append(_Buffer(bias))
        if len(self.buffers) > 2:
            tensors.append(self.buffers[2].data.new_zeros(*tensors[0].shape[:3], 1) if bias is None else bias)
        at = self._columns
        for buffer, tensor in zip(self.buffers, tensors, strict=True):
            at.put(buffer, self.first, rows, tensor[:, :, max(0, tensor.shape[2] - width) :])

    def get_seq_length(self) -> int:
        return self._columns.end - self._columns.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._columns.end - self.first + query_length, self.first - self._columns.start


class Columns:
    """The cache of a batch that rows can join and leave.

    Attributes:
        rows: R.
        start: first column of any row.
        end: column of the next token.
        part: the rows of the current pass.
    """

    def __init__(self, backbone: Backbone, cache: Cache | None) -> None:
        self.rows = self.start = self.end = 0
        self.part = slice(0, 0)
        self._firsts: list[int] = []  # first column of each row
        self._dtype: torch.dtype = backbone.model.dtype
        self._device = backbone.device
        layers = (cache if cache is not None else empty(backbone)).layers
        self._layers = [_Layer(self, layer.sliding_window if layer.is_sliding else None) for layer in layers]
        self._mask = _Buffer(torch.zeros(0, 0, 1, dtype=torch.long, device=self._device))
        # With a mask over queries and keys torch's CPU kernel for grouped queries is several times as fast, and
        # transformers does not read the mask back from a GPU.
        self._wide = cache is not None and packs(backbone, cache)

    @property
    def slides(self) -> bool:
        """Whether a layer has a sliding window."""
        return any(layer.is_sliding for layer in self._layers)

    @property
    def cache(self) -> Cache:
        """The cache for a pass over the rows of `part`."""
        return Cache(layers=list(self._layers))

    def join(self, filled: Prefill) -> None:
        """Add the rows of a prefill, with the keys and values of their last tokens if it has them.

        Raises:
            OutOfMemoryError: then nothing was added.
        """
        before = self.rows, self.start, len(self._firsts)
        try:
            self._join(filled)
        except BaseException:
            self.rows, self.start = before[:2]
            del self._firsts[before[2] :]
            raise

    def _join(self, filled: Prefill) -> None:
        count, columns = filled.mask.shape[0], filled.mask.shape[1] - (filled.last is None)
        self._firsts += [self.end - columns + n for n in filled.mask.argmax(1).tolist()]
        new = slice(self.rows, self.rows + count)
        self.rows, self.start = self.rows + count, min(self._firsts)
        width = min(columns, self.end - self.start)
        own = filled.kv_cache.layers if filled.kv_cache is not None else []
        last = filled.last.layers if filled.last is not None else [None] * len(own)
        for layer, its, end in zip(self._layers, own, last, strict=False):
            layer.put(new, its, end, width)
        self.put(self._mask, self.start, new, filled.mask[:, columns - width : columns, None])

    def put(self, buffer: _Buffer, first: int, rows: slice, columns: Tensor) -> None:
        """Write new rows into a buffer, at its last columns before `end`."""
        buffer.make_room(self.rows, min(first, self.end - columns.shape[-2]), self.end + 1)
        buffer.data[rows] = 0
        buffer.span(self.end - columns.shape[-2], self.end)[rows] = columns

    def leave(self, row: int) -> None:
        """Remove a row; the last one takes its number."""
        self.rows -= 1
        self._firsts[row] = self._firsts[-1]
        self._firsts.pop()
        self.start = min(self._firsts, default=self.end)
        for buffer in (self._mask, *(b for layer in self._layers for b in layer.buffers)):
            if not self.rows:
                buffer.clear()
            elif row < self.rows:
                buffer.data[row] = buffer.data[self.rows]

    def mask(self, tokens: int) -> Tensor:
        """The attention mask of a pass of Q tokens for the rows of `part`: (N, 1, Q, K + Q), or (N, K + Q)."""
        self._mask.make_room(self.rows, self.start, self.end + tokens)
        self._mask.span(self.end, self.end + tokens)[self.part] = 1
        seen = self._mask.span(self.start, self.end + tokens)[self.part, :, 0]
        if not self._wide:
            return seen
        past = seen[:, None, : self.end - self.start].expand(-1, tokens, -1)
        return attention(past, torch.zeros(len(seen), tokens, dtype=torch.long, device=seen.device), self._dtype)

    def advance(self, kept: Sequence[int]) -> None:
        """After a pass: keep the first columns of it, as many in each row as `kept` has; the others were rejected."""
        most = max(kept)
        if min(kept) < most:
            keep = torch.arange(most) < torch.tensor(kept)[:, None]
            self._mask.span(self.end, self.end + most)[: self.rows, :, 0] = keep.long().to(self._device)
        self.end += most


class Fixed:
    """A cache with more than keys and values: its rows cannot be moved, so they stay until all are done."""

    slides = True

    def __init__(self, filled: Prefill) -> None:
        assert filled.kv_cache is not None
        self.rows, self.cache, self._mask = len(filled.mask), filled.kv_cache, filled.mask[:, :-1]
        self.part = slice(0, self.rows)

    def mask(self, tokens: int) -> Tensor:
        """The attention mask of a pass of Q tokens (N, K + Q)."""
        return torch.cat([self._mask, self._mask.new_ones(self.rows, tokens)], 1)

    def advance(self, kept: Sequence[int]) -> None:
        """After a pass of one token."""
        self._mask = self.mask(max(kept))


def columns_of(backbone: Backbone, filled: Prefill) -> Columns | Fixed:
    """Where the rows of a prefill are decoded."""
    if not can_join(filled.kv_cache):
        return Fixed(filled)
    columns = Columns(backbone, filled.kv_cache)
    columns.join(filled)
    return columns
