"""Keys and values of a prompt's beginning where they are kept: without those that nothing attends to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer

from memograft.model.backbone import Backbone
from memograft.model.int8 import Int8
from memograft.model.key_bias import NEVER, BiasedLayer
from memograft.model.kv import Segment, empty, nothing

__all__ = ["Carried", "CarriedLayer"]


@dataclass(frozen=True)
class CarriedLayer:
    """What is kept of a layer's keys and values: n of H * C.

    Attributes:
        kept: which (H, C), bool.
        keys: (n, d), head by head.
        values: (n, d).
        bias: (n,) float32.
    """

    kept: Tensor
    keys: Tensor | Int8
    values: Tensor | Int8
    bias: Tensor

    def spread(self, dtype: torch.dtype) -> BiasedLayer:
        """A layer of one row with all C columns; those that were left out are never attended to."""
        keys, values = (self._spread(t, dtype) for t in (self.keys, self.values))
        bias = self.bias.new_full(self.kept.shape, NEVER)
        bias[self.kept] = self.bias
        return BiasedLayer(keys[None], values[None], bias[None, ..., None])

    def _spread(self, own: Tensor | Int8, dtype: torch.dtype) -> Tensor:
        numbers = own.numbers(dtype) if isinstance(own, Int8) else own.to(dtype)
        found = numbers.new_zeros(*self.kept.shape, numbers.shape[-1])
        found[self.kept] = numbers
        return found

    @property
    def nbytes(self) -> int:
        """Size in bytes, with a bit for each of H * C."""
        return math.ceil(self.kept.numel() / 8) + sum(t.nbytes for t in (self.keys, self.values, self.bias))


@dataclass(frozen=True)
class Carried:
    """The beginning of a prompt.

    Attributes:
        ids: its C tokens.
        layers: of each layer, what was compacted, or the exact keys and values (1, H, C, d); of a sliding window, its
            last columns.
    """

    ids: tuple[int, ...]
    layers: tuple[CarriedLayer | tuple[Tensor, Tensor], ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(
            layer.nbytes if isinstance(layer, CarriedLayer) else sum(t.nbytes for t in layer) for layer in self.layers
        )

    def segment(self, backbone: Backbone) -> Segment:
        """As a segment with a column for each token."""
        cache = empty(backbone)
        for n, layer in enumerate(self.layers):
            if isinstance(layer, CarriedLayer):
                cache.layers[n] = layer.spread(backbone.model.dtype)
            else:
                # A sliding window counts the columns that it has dropped.
                cache.update(*(pad(t, (0, 0, len(self.ids) - t.shape[2], 0)) for t in layer), n)
        # The states that memories are trained on are not kept.
        x = nothing(backbone, 1, len(self.ids))
        return Segment(self.ids, cache, x, x)

    @classmethod
    def of(cls, segment: Segment) -> Carried:
        """What is to be kept of a segment that stands for its tokens."""
        layers = segment.kv_cache.layers
        return cls(segment.ids, tuple(_carried(layer) for layer in layers))


def _carried(layer: DynamicLayer) -> CarriedLayer | tuple[Tensor, Tensor]:
    if not isinstance(layer, BiasedLayer):
        return layer.keys, layer.values
    bias = layer.bias[0, ..., 0]
    kept = bias > NEVER
    keys, values = (_smallest(numbers[0][kept]) for numbers in (layer.keys, layer.values))
    return CarriedLayer(kept, keys, values, bias[kept])


def _smallest(numbers: Tensor) -> Tensor | Int8:
    """In 8 bits each, if that says the same."""
    small = Int8.of(numbers)
    return small if torch.equal(small.numbers(numbers.dtype), numbers) else numbers
