"""Finds the parts of a Backbone by watching one forward pass of the live model, and proves the replay.

Structural rules only: the layers are the list of `num_hidden_layers` modules; attention is whatever is handed the cache or
the mask; the FFN is the last part of the last layer that has matrices and is not attention; the tail is the chain of
modules that hand the last layer's output on to the head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from memograft.backbone import Backbone, first, linear_shape, unsupported

_TRY_ANOTHER = "use a decoder-only causal LM whose last layer ends in a feed-forward block"
_UNBOUNDED = 1 << 30


def dissect(model: nn.Module) -> Backbone:
    """See `Backbone.of`."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "generate") or model.get_output_embeddings() is None:  # type: ignore[operator]
        raise unsupported(
            f"`model` must be a causal LM of transformers, got {type(model).__name__}",
            "load it with AutoModelForCausalLM.from_pretrained(...)",
        )
    if config.is_encoder_decoder:
        raise unsupported(
            f"{type(model).__name__} is an encoder-decoder: its documents never pass the decoder's last FFN",
            "use a decoder-only model",
        )
    if model.training:
        model.eval()
    text_config = config.get_text_config()
    layer = _last_layer(model, int(text_config.num_hidden_layers))
    calls, logits = _record(model, layer)
    ffn, post = _find_ffn(layer, calls)
    backbone = Backbone(
        model=model,
        layer=layer,
        ffn=ffn,
        post=post,
        residual_scale=float(getattr(layer, "residual_multiplier", 1.0)),
        tail=_find_tail(model, layer, calls),
        projections=_projections(model, ffn, int(text_config.hidden_size)),
        max_length=int(getattr(text_config, "max_position_embeddings", None) or _UNBOUNDED),
        logit_scale=_logit_scale(text_config),
        logit_cap=getattr(text_config, "final_logit_softcapping", None),
    )
    _prove(backbone, logits)
    return backbone


def probe_ids(model: nn.Module) -> Tensor:
    """(1, 8) token ids that any vocabulary has."""
    size = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator,union-attr]
    ids = torch.arange(3, 11) * 7919 % max(size - 1, 1)
    return ids[None].to(model.get_input_embeddings().weight.device)  # type: ignore[operator,union-attr]


class _Call:
    """One call of a module: what went in, what came out. Tensors are kept, so that addresses stay distinct."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.module = module
        self.input = args[0] if args else next((v for v in kwargs.values() if isinstance(v, Tensor)), None)
        self.output = first(output)
        self.names = {k for k, v in kwargs.items() if v is not None}
        self.args = args


def _last_layer(model: nn.Module, count: int) -> nn.Module:
    lists = [m for _, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise unsupported(f"{type(model).__name__} has no list of {count} decoder layers", _TRY_ANOTHER)
    return lists[0][-1]


@torch.no_grad()
def _record(model: nn.Module, layer: nn.Module) -> tuple[list[_Call], Tensor]:
    """Calls of the last layer, of its direct children, and of what runs outside the layers; and the logits (1, T, V)."""
    calls: list[_Call] = []
    inside = {id(m) for m in layer.modules()} - {id(layer)}
    watched = [layer, *layer.children()]
    for name, module in model.named_modules():
        is_list_part = any(part.isdigit() for part in name.split("."))
        if id(module) not in inside and not is_list_part and name and not _contains(module, layer):
            watched.append(module)

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(_Call(module, args, kwargs, output))

    handles = [m.register_forward_hook(note, with_kwargs=True) for m in watched]
    try:
        out = model(input_ids=probe_ids(model), use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    _check_cache(model, out.past_key_values)
    return calls, out.logits.float()


def _contains(module: nn.Module, part: nn.Module) -> bool:
    return any(m is part for m in module.modules())


def _check_cache(model: nn.Module, cache: Any) -> None:
    layers = getattr(cache, "layers", None)
    if not isinstance(cache, DynamicCache) or layers is None or any(not hasattr(part, "keys") for part in layers):
        raise unsupported(
            f"{type(model).__name__} keeps {type(cache).__name__}, not keys and values of every layer, between tokens",
            "hybrid and recurrent models cannot be prefilled once and reused; use a pure attention model",
        )


def _find_ffn(layer: nn.Module, calls: list[_Call]) -> tuple[tuple[nn.Module, ...], tuple[nn.Module, ...]]:
    children = {id(m) for m in layer.children()}
    inner = [c for c in calls if id(c.module) in children]
    matrices = [i for i, c in enumerate(inner) if _has_matrix(c.module) and not _is_attention(c)]
    if not matrices:
        raise unsupported(f"the last layer ({type(layer).__name__}) has no feed-forward block", _TRY_ANOTHER)
    last = start = matrices[-1]
    if linear_shape(inner[last].module) is not None:  # OPT: fc1, activation and fc2 lie in the layer itself
        while start > 0 and _follows(inner[start], inner[start - 1]) and not _is_norm(inner[start - 1].module):
            start -= 1
    ffn = inner[start : last + 1]
    post = []
    for call in inner[last + 1 :]:
        if not _follows(call, (post or ffn)[-1]):
            break
        post.append(call)
    # Dropout does nothing outside training, and Phi calls the one module for attention and FFN alike.
    return tuple(c.module for c in ffn), tuple(c.module for c in post if any(True for _ in c.module.parameters()))


def _is_attention(call: _Call) -> bool:
    return bool(call.names & {"past_key_values", "layer_past", "attention_mask", "position_embeddings"})


def _has_matrix(module: nn.Module) -> bool:
    return any(p.ndim >= 2 for p in module.parameters())


def _is_norm(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) and not _has_matrix(module)


def _follows(call: _Call, before: _Call) -> bool:
    """Whether `call` was handed exactly what `before` gave."""
    a, b = call.input, before.output
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.data_ptr() == b.data_ptr() and a.numel() == b.numel()


def _find_tail(model: nn.Module, layer: nn.Module, calls: list[_Call]) -> tuple[nn.Module, ...]:
    at = max(i for i, c in enumerate(calls) if c.module is layer)
    head = model.get_output_embeddings()  # type: ignore[operator]
    chain, previous = [], calls[at]
    for call in calls[at + 1 :]:
        if _follows(call, previous):
            chain.append(call.module)
            previous = call
        if call.module is head:
            break
    if not chain or chain[-1] is not head:
        raise unsupported(
            f"{type(model).__name__} does more between its last layer and its head than call modules", _TRY_ANOTHER
        )
    return tuple(chain)


def _projections(model: nn.Module, ffn: tuple[nn.Module, ...], width: int) -> dict[str, nn.Module]:
    """Linear maps of the FFN from D to F (or 2 F where gate and up are fused) and from F to D."""
    names = {id(m): n for n, m in model.named_modules()}
    maps = {names[id(m)]: m for part in ffn for m in part.modules() if linear_shape(m) is not None}
    shapes = {name: linear_shape(m) or (0, 0) for name, m in maps.items()}
    inner = {i for i, o in shapes.values() if o == width and i > 1}  # F, by the maps that lead back to D
    return {
        name: module
        for name, module in maps.items()
        if (shapes[name][1] == width and shapes[name][0] in inner)
        or (shapes[name][0] == width and shapes[name][1] in inner | {2 * f for f in inner})
    }


def _logit_scale(config: Any) -> float:
    divisor = getattr(config, "logits_scaling", None)
    factor = getattr(config, "logit_scale", None)
    return float(factor or 1.0) / float(divisor or 1.0)


@torch.no_grad()
def _prove(backbone: Backbone, own: Tensor) -> None:
    """The replay must be the model's own logits: nothing here is ever silently wrong."""
    with backbone.watch(skip_ffn=True) as seen:
        backbone.model(input_ids=probe_ids(backbone.model), use_cache=False)
    replayed = backbone.logits(*seen.rows())
    scale = float(own.abs().max().clamp_min(1e-6))
    error = float((replayed - own).abs().max()) / scale
    dtype = next(backbone.head.parameters()).dtype
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    if not error <= tolerance:
        raise unsupported(
            f"replaying the last FFN of {type(backbone.model).__name__} gives other logits than the model "
            f"(relative error {error:.1e}, allowed {tolerance:.0e}): something after its last layer is not understood",
            "please report the model; until then use another one",
        )
