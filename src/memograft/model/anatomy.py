"""Find the parts of a Backbone by observing a forward pass of the model, and verify them by replaying it.

Only structure is used: the layers are the list of `num_hidden_layers` modules that runs; attention is what receives the
cache or the mask; the FFN is the last part of the last layer that has matrices and is not attention; the tail is the
chain of modules from the last layer's output to the head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from memograft.errors import UnsupportedModelError
from memograft.model.backbone import (
    Backbone,
    Output,
    cache_of,
    first,
    input_weight,
    linear_shape,
    replace_first,
    unsupported,
)

if TYPE_CHECKING:
    from transformers import Cache, PretrainedConfig, PreTrainedModel

_TRY_ANOTHER = "use a decoder-only causal LM whose last layer ends in a feed-forward block"
_UNBOUNDED = 1 << 30


def dissect(model: PreTrainedModel) -> Backbone:
    """See `Backbone.of`."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "generate") or _head(model) is None:
        raise unsupported(
            f"`model` must be a causal LM of transformers, got {type(model).__name__}",
            "load it with AutoModelForCausalLM.from_pretrained(...)",
        )
    if config.is_encoder_decoder:
        raise unsupported(
            f"{type(model).__name__} is an encoder-decoder: its documents never pass the decoder's last FFN",
            "use a decoder-only model",
        )
    if hasattr(model, "get_base_model"):  # its forward has no `position_ids` in its signature
        raise unsupported(
            "`model` is wrapped by PEFT",
            "pass model.merge_and_unload(), or model.get_base_model() to keep its adapter apart",
        )
    if any(m.training for m in model.modules()):  # refused, not switched: the model is the user's
        raise unsupported(f"{type(model).__name__} is in training mode, where dropout is on", "call model.eval() first")
    try:
        return _take_apart(model, config.get_text_config())
    except (UnsupportedModelError, torch.OutOfMemoryError):
        raise
    except Exception as e:  # any error of unknown model code
        raise unsupported(f"probing {type(model).__name__} failed with {type(e).__name__}: {e}", _TRY_ANOTHER) from e


def _take_apart(model: PreTrainedModel, config: PretrainedConfig) -> Backbone:
    layer = _last_layer(model, int(config.num_hidden_layers))
    calls, logits = _record(model, layer)
    ffn, post = _find_ffn(layer, calls)
    backbone = Backbone(
        model=model,
        layer=layer,
        ffn=ffn,
        post=post,
        residual_scale=float(getattr(layer, "residual_multiplier", 1.0)),
        tail=_find_tail(model, layer, calls),
        projections=_projections(model, ffn, int(config.hidden_size), calls),
        max_length=int(getattr(config, "max_position_embeddings", None) or _UNBOUNDED),
        logit_scale=_logit_scale(config),
        logit_cap=getattr(config, "final_logit_softcapping", None),
    )
    _prove(backbone, logits)
    return backbone


def probe_ids(model: PreTrainedModel) -> Tensor:
    """(1, 8) token ids that every vocabulary has."""
    weight = input_weight(model)
    ids = torch.arange(3, 11) * 7919 % max(weight.shape[0] - 1, 1)
    return ids[None].to(weight.device)


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value of b."""
    return float((a.to(b.device) - b).abs().max() / b.abs().max().clamp_min(1e-6))


class _Call:
    """One call of a module, with its input and output. Keeping the tensors keeps their addresses distinct."""

    def __init__(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: Output) -> None:
        self.module = module
        self.input = args[0] if args else next((v for v in kwargs.values() if isinstance(v, Tensor)), None)
        self.output = first(output)
        self.names = {k for k, v in kwargs.items() if v is not None}
        self.args = args


def _head(model: nn.Module) -> nn.Module | None:
    get: Callable[[], nn.Module | None] | None = getattr(model, "get_output_embeddings", None)
    return get() if get is not None else None


@torch.no_grad()
def _last_layer(model: PreTrainedModel, count: int) -> nn.Module:
    """The last module of the list of `count` modules that runs last in a pass over text, so not of a vision tower."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    ran: list[nn.Module] = []
    handles = [m[-1].register_forward_hook(lambda module, *_: ran.append(module)) for m in lists]
    try:
        model(input_ids=probe_ids(model))
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise unsupported(f"{type(model).__name__} has no list of {count} decoder layers", _TRY_ANOTHER)
    return ran[-1]


@torch.no_grad()
def _record(model: PreTrainedModel, layer: nn.Module) -> tuple[list[_Call], Tensor]:
    """Record calls of the last layer, its children and linear maps, and of outer modules; also logits (1, T, V)."""
    calls: list[_Call] = []
    inside = {id(m) for m in layer.modules()} - {id(layer)}
    children = list(layer.children())
    watched = [layer, *children, *(m for m in layer.modules() if linear_shape(m) and not _among(m, children))]
    for name, module in model.named_modules():
        is_list_part = any(part.isdigit() for part in name.split("."))
        if id(module) not in inside and not is_list_part and name and not _contains(module, layer):
            watched.append(module)

    def note(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: Output) -> None:
        calls.append(_Call(module, args, kwargs, output))

    handles = [m.register_forward_hook(note, with_kwargs=True) for m in watched]
    try:
        out = model(input_ids=probe_ids(model), use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    _check_cache(model, cache_of(out))
    return calls, out.logits.float()


def _contains(module: nn.Module, part: nn.Module) -> bool:
    return any(m is part for m in module.modules())


def _among(module: nn.Module, modules: list[nn.Module]) -> bool:
    return any(m is module for m in modules)


def _check_cache(model: PreTrainedModel, cache: Cache | None) -> None:
    # A subclass may have more state (MiniMax); a hybrid layer has both attention and a recurrent state (Falcon H1).
    if (
        cache is None
        or type(cache) is not DynamicCache
        or not all(
            isinstance(part, DynamicLayer) and not isinstance(part, LinearAttentionCacheLayerMixin)
            for part in cache.layers
        )
    ):
        raise unsupported(
            f"{type(model).__name__} does not keep keys and values, and only those, of every layer between tokens",
            "hybrid and recurrent models cannot be prefilled once and reused; use a pure attention model",
        )


def _find_ffn(layer: nn.Module, calls: list[_Call]) -> tuple[tuple[nn.Module, ...], tuple[nn.Module, ...]]:
    children = {id(m) for m in layer.children()}
    inner = [c for c in calls if id(c.module) in children]
    matrices = [i for i, c in enumerate(inner) if _has_matrix(c.module) and not _is_attention(c)]
    if not matrices:
        raise unsupported(f"the last layer ({type(layer).__name__}) has no feed-forward block", _TRY_ANOTHER)
    last = start = matrices[-1]
    if linear_shape(inner[last].module) is not None:  # OPT: fc1, activation and fc2 are direct parts of the layer
        while start > 0 and _follows(inner[start], inner[start - 1]) and not _is_norm(inner[start - 1].module):
            start -= 1
    ffn = inner[start : last + 1]
    post: list[_Call] = []
    for call in inner[last + 1 :]:
        if not _follows(call, (post or ffn)[-1]):
            break
        post.append(call)
    # Modules without parameters are dropped: dropout has no effect, and Phi uses one dropout for attention and FFN.
    return tuple(c.module for c in ffn), tuple(c.module for c in post if any(True for _ in c.module.parameters()))


def _is_attention(call: _Call) -> bool:
    return bool(call.names & {"cache", "past_key_values", "layer_past", "attention_mask", "position_embeddings"})


def _has_matrix(module: nn.Module) -> bool:
    return any(p.ndim >= 2 for p in module.parameters())


def _is_norm(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) and not _has_matrix(module)


def _follows(call: _Call, before: _Call) -> bool:
    """Whether the input of `call` is exactly the output of `before`."""
    a, b = call.input, before.output
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.data_ptr() == b.data_ptr() and a.numel() == b.numel()


def _find_tail(model: PreTrainedModel, layer: nn.Module, calls: list[_Call]) -> tuple[nn.Module, ...]:
    at = max(i for i, c in enumerate(calls) if c.module is layer)
    head = _head(model)
    chain, previous = [], calls[at]
    for call in calls[at + 1 :]:
        if _follows(call, previous):
            chain.append(call.module)
            previous = call
        if call.module is head:
            break
    if not chain or chain[-1] is not head:
        raise unsupported(
            f"{type(model).__name__} does more between its last layer and its head than call modules in turn",
            _TRY_ANOTHER,
        )
    return tuple(chain)


def _projections(
    model: PreTrainedModel, ffn: tuple[nn.Module, ...], width: int, calls: list[_Call]
) -> dict[str, nn.Module]:
    """Linear maps of the FFN from D to F (or to 2 F if gate and up are fused) and from F to D."""
    if any(hasattr(m, "base_layer") for part in ffn for m in part.modules()):
        raise unsupported("the last FFN already carries an adapter of PEFT", "merge it first: model.merge_and_unload()")
    names = {id(m): n for n, m in model.named_modules()}
    maps = {
        names[id(m)]: m for part in ffn for m in part.modules() if _passed_by_all(m, calls, probe_ids(model).numel())
    }
    shapes = {name: linear_shape(m) or (0, 0) for name, m in maps.items()}
    inner = {i for i, o in shapes.values() if o == width and i > 1}  # F: the inputs of maps to D
    return {
        name: module
        for name, module in maps.items()
        if (shapes[name][1] == width and shapes[name][0] in inner)
        or (shapes[name][0] == width and shapes[name][1] in inner | {2 * f for f in inner})
    }


def _passed_by_all(module: nn.Module, calls: list[_Call], tokens: int) -> bool:
    """Whether it is a linear map that was called once with all tokens. Routed experts and bare weights are not."""
    shape = linear_shape(module)
    inputs = [c.input for c in calls if c.module is module]
    return shape is not None and [i.numel() for i in inputs if isinstance(i, Tensor)] == [tokens * shape[0]]


def _logit_scale(config: PretrainedConfig) -> float:
    divisor = getattr(config, "logits_scaling", None)
    factor = getattr(config, "logit_scale", None)
    return float(factor or 1.0) / float(divisor or 1.0)


@torch.no_grad()
def _prove(backbone: Backbone, own: Tensor) -> None:
    """Check that replaying the tail gives the model's own logits.

    The check is repeated with noise, as large as the residual, as the FFN's output. An untrained FFN may add so little,
    or half precision may hide it, that an error in its treatment would not show.
    """
    ids = probe_ids(backbone.model)
    with backbone.watch() as seen:
        backbone.model(input_ids=ids, use_cache=False)
    x, residual = seen.rows()
    noise = torch.randn(residual.shape, generator=torch.Generator().manual_seed(0)).to(residual) * residual.std()
    handle = backbone.ffn_end.register_forward_hook(
        lambda _module, _args, output: replace_first(output, noise.reshape(first(output).shape).clone())
    )
    try:
        disturbed = backbone.model(input_ids=ids, use_cache=False).logits.float()
    finally:
        handle.remove()
    error = max(
        _difference(backbone.logits(x, residual), own),
        _difference(backbone.finish(first(backbone.head(backbone.join(noise, residual)))), disturbed),
    )
    tolerance = 1e-5 if residual.dtype == torch.float32 else 3e-2
    if not error <= tolerance:
        raise unsupported(
            f"replaying the last FFN of {type(backbone.model).__name__} gives other logits than the model "
            f"(relative error {error:.1e}, allowed {tolerance:.0e}): something after its last layer is not supported",
            "please report the model; until then use another one",
        )
