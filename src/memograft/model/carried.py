"""Keys and values of a prompt's beginning where they are kept: without those that nothing attends to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer

from memograft.model.backbone import Backbone
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
    keys: Tensor
    values: Tensor
    bias: Tensor

    def spread(self) -> BiasedLayer:
        """A layer of one row with all C columns; those that were left out are never attended to."""
        keys, values = (t.new_zeros(*self.kept.shape, t.shape[-1]) for t in (self.keys, self.values))
        bias = self.bias.new_full(self.kept.shape, NEVER)
        keys[self.kept], values[self.kept], bias[self.kept] = self.keys, self.values, self.bias
        return BiasedLayer(keys[None], values[None], bias[None, ..., None])

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(t.nbytes for t in (self.kept, self.keys, self.values, self.bias))


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
                cache.layers[n] = layer.spread()
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
    return CarriedLayer(kept, layer.keys[0][kept], layer.values[0][kept], bias[kept])
