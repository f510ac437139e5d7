"""A number for each cached key and head that is added to its attention scores; and the queries that a model asks.

    softmax(q K^T / sqrt(d) + b) V          b (H, C): of C cached columns, 0 for every other column

The numbers are part of the cache (`BiasedLayer`), so they move with its rows. A pass over such a cache runs inside
`biased`, whose hooks give each layer its own mask. This is verified once for each model: attention kernels that take
no mask for each head would ignore the numbers.
"""

from __future__ import annotations

import inspect
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.cache_utils import DynamicLayer

from memograft.model.backbone import Backbone, cache_name, cache_of, unsupported

__all__ = [
    "NEVER",
    "Asked",
    "BiasedLayer",
    "asking",
    "attention",
    "attention_modules",
    "biased",
    "check_bias",
    "most_tokens",
]

_MASK = 1 << 26  # numbers of a mask (256 MiB of float32)
NEVER = torch.finfo(torch.float32).min  # the number of a key that no query attends to; finite, so that sums are too

_local = threading.local()  # `asked`: where `asking` records in this thread
_checked: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_attention: WeakKeyDictionary[nn.Module, dict[int, weakref.ref[nn.Module]]] = WeakKeyDictionary()


class BiasedLayer(DynamicLayer):  # type: ignore[misc]
    """A layer of a cache with a number for each key and head.

    Attributes:
        bias: (B, H, C, 1) float32; new columns get 0.
    """

    def __init__(self, keys: Tensor, values: Tensor, bias: Tensor) -> None:
        super().__init__()
        super().update(keys, values)
        self.bias = bias

    def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append columns (B, H, Q, d) and return all."""
        self.bias = nn.functional.pad(self.bias, (0, 0, 0, keys.shape[2]))
        all_keys, all_values = super().update(keys, values)
        return all_keys, all_values

    def crop(self, max_length: int) -> None:
        """Keep the first columns, or remove the last -`max_length`."""
        super().crop(max_length)
        self.bias = self.bias[:, :, : self.keys.shape[2]]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        super().batch_repeat_interleave(repeats)
        self.bias = self.bias.repeat_interleave(repeats, 0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        super().batch_select_indices(indices)
        self.bias = self.bias[indices.to(self.bias.device)]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, in this order."""
        super().reorder_cache(beam_idx)
        self.bias = self.bias[beam_idx.to(self.bias.device)]


@contextmanager
def biased(backbone: Backbone, cache: Cache | None) -> Iterator[None]:
    """Inside, in this thread, the model's attention adds the numbers of this cache to its scores.

    The cache is the one that the pass is given. Does nothing for a cache without such numbers.
    """
    layers = cache.layers if cache is not None else []
    found = {n: bias for n, layer in enumerate(layers) if (bias := getattr(layer, "bias", None)) is not None}
    if not found:
        yield
        return
    owner, modules = threading.current_thread(), attention_modules(backbone.model)
    heads = int(backbone.model.config.get_text_config(decoder=True).num_attention_heads)

    def hook(
        bias: Tensor, _module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor | None]
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor | None]] | None:
        if threading.current_thread() is not owner:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        assert hidden is not None
        mask = with_bias(kwargs.get("attention_mask"), bias, heads, hidden.shape[-2], hidden.dtype)
        return args, {**kwargs, "attention_mask": mask}

    with ExitStack() as undo:
        for n, bias in found.items():
            handle = modules[n].register_forward_pre_hook(partial(hook, bias), with_kwargs=True)
            undo.callback(handle.remove)
        yield


def most_tokens(backbone: Backbone, cache: Cache | None) -> int:
    """How many tokens of each row a pass may have, so that a mask for each head does not take much memory."""
    shapes = [layer.bias.shape for layer in (cache.layers if cache is not None else []) if hasattr(layer, "bias")]
    heads = int(backbone.model.config.get_text_config(decoder=True).num_attention_heads)
    return min((max(1, _MASK // (rows * heads * columns)) for rows, _, columns, _ in shapes), default=sys.maxsize)


def with_bias(mask: Tensor | None, bias: Tensor, heads: int, queries: int, dtype: torch.dtype) -> Tensor:
    """The mask of a pass over Q tokens, for each head.

    Args:
        mask: what the layer would be given: (N, 1, Q, C + Q), bool or added to the scores; None: causal.
        bias: of the C columns before the pass (N, H, C, 1), H heads of keys.
        heads: of queries; a multiple of H.
        queries: Q.
        dtype: of the model.

    Returns:
        (N, heads, Q, C + Q), to be added to the scores.
    """
    columns = nn.functional.pad(bias[..., 0], (0, queries))
    columns = columns.repeat_interleave(heads // bias.shape[1], 1)[:, :, None]
    if mask is None:
        mask = torch.ones(queries, columns.shape[-1], dtype=torch.bool, device=bias.device)
        mask = mask.tril(columns.shape[-1] - queries)[None, None]
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, NEVER)
    return (mask.float() + columns).clamp_min(torch.finfo(dtype).min).to(dtype)


def attention_modules(model: nn.Module) -> Mapping[int, nn.Module]:
    """The module of each layer, by its number in the cache, that is given the attention mask. Found once for a model,
    because every token's pass needs them."""
    if model not in _attention:
        found: dict[int, weakref.ref[nn.Module]] = {}
        for module in model.modules():  # a decoder layer comes before the attention inside it, which replaces it here
            number = getattr(module, "layer_idx", None)
            if isinstance(number, int) and "attention_mask" in inspect.signature(module.forward).parameters:
                found[number] = weakref.ref(module)
        _attention[model] = found
    return {number: own for number, of in _attention[model].items() if (own := of()) is not None}


def check_bias(backbone: Backbone) -> None:
    """Refuse a model whose attention would ignore the numbers of a cache. Found out once for each model.

    Raises:
        UnsupportedModelError: it ignores them.
    """
    model = backbone.model
    if model not in _checked:
        _checked[model] = _takes_bias(backbone)
    if not _checked[model]:
        raise unsupported(
            f"compacted keys need a mask for each head, which {type(model).__name__} with the attention "
            f"implementation {attention(backbone)!r} ignores",
            'load the model with attn_implementation="sdpa" or "eager", or use Kept()',
        )


@torch.no_grad()
def _takes_bias(backbone: Backbone) -> bool:
    """Whether a key with `NEVER` has the effect of a column that the mask hides."""
    model, name = backbone.model, cache_name(backbone.model.forward)
    ids = torch.tensor([[n % backbone.vocabulary for n in range(1, 7)]], device=backbone.device)
    shown, hidden = torch.ones_like(ids), torch.ones_like(ids)
    hidden[0, 1] = 0
    kept = cache_of(model(input_ids=ids[:, :4], use_cache=True)).layers  # type: ignore[union-attr]
    if not set(range(len(kept))) <= set(attention_modules(model)):
        return False
    places = {"position_ids": torch.arange(4, 6, device=ids.device)[None]}
    places = places if "position_ids" in inspect.signature(model.forward).parameters else {}

    def logits(mask: Tensor, value: float) -> Tensor:
        cache = Cache(layers=[_with(layer, value) for layer in kept])  # shorter than any sliding window
        with biased(backbone, cache):
            found: Tensor = model(input_ids=ids[:, 4:], attention_mask=mask, **{name: cache}, **places).logits
        return found.float()

    try:
        never, masked, whole = logits(shown, NEVER), logits(hidden, 0.0), logits(shown, 0.0)
    except torch.OutOfMemoryError:
        raise  # says nothing about the model
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError):
        return False
    return bool((never - masked).norm() < 0.2 * (whole - masked).norm())


def _with(layer: DynamicLayer, value: float) -> BiasedLayer:
    """A layer whose second key has this number in each head."""
    bias = layer.keys.new_zeros(*layer.keys.shape[:3], 1, dtype=torch.float32)
    bias[:, :, 1] = value
    return BiasedLayer(layer.keys, layer.values, bias)


@dataclass(frozen=True)
class Asked:
    """What a layer's attention was given in a pass over Q tokens.

    Attributes:
        queries: (B, heads, Q, d), after rotation.
        scale: factor on the scores.
        cap: c of c * tanh(scores / c) (Gemma 2), or None.
    """

    queries: Tensor
    scale: float
    cap: float | None


@contextmanager
def asking(backbone: Backbone) -> Iterator[dict[int, Asked]]:
    """Inside, passes of this thread record the queries of each layer by its number. The outputs are the same.

    Raises:
        UnsupportedModelError: the model does not use transformers' attention interface, which is the only general place
            where queries can be seen.
    """
    model, kernel, asked = backbone.model, attention(backbone), dict[int, Asked]()
    name = f"memograft_{kernel}"
    if name not in AttentionInterface():
        AttentionInterface.register(name, partial(_recorded, kernel))
        AttentionMaskInterface.register(name, AttentionMaskInterface()[kernel])
    before, _local.asked = getattr(_local, "asked", None), asked
    try:
        model.set_attn_implementation(name)  # only logs a warning if that is not possible
        yield asked
    finally:
        _local.asked = before
        if attention(backbone) == name:
            model.set_attn_implementation(kernel)
    if not asked:
        raise unsupported(
            f"{type(model).__name__} does not use transformers' attention interface, so its queries cannot be seen",
            "use Kept(), or a model that does",
        )


def attention(backbone: Backbone) -> str:
    """The name of the model's attention implementation, as "sdpa"."""
    return str(backbone.model.config.get_text_config(decoder=True)._attn_implementation)


def _recorded(
    kernel: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: Any
) -> object:
    asked: dict[int, Asked] | None = getattr(_local, "asked", None)
    if asked is not None:
        scale = kwargs.get("scaling")
        scale = float(scale) if scale is not None else query.shape[-1] ** -0.5
        asked[module.layer_idx] = Asked(query, scale, kwargs.get("softcap"))  # type: ignore[index]
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return AttentionInterface().get_interface(kernel, own)(module, query, key, value, *args, **kwargs)
