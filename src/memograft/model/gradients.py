"""Gradients through frozen linear maps whose kernels return none or a wrong one, as some quantised kernels do.

bitsandbytes' 4-bit kernel on CPUs with avx512_bf16 is an example: its output requires grad, but no gradient arrives. So
each quantised map is tested, and if its gradient is wrong, its dequantised weights are used in the backward pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, NestedIOFunction

from memograft.model.backbone import Backbone, first, has_plain_weight, linear_shape

__all__ = ["stand_ins", "through"]

_TOLERANCE = 0.2  # 8-bit kernels round their input, which changes a few percent
_known: WeakKeyDictionary[nn.Module, Tensor | None] = WeakKeyDictionary()


def stand_ins(backbone: Backbone, names: Sequence[str]) -> dict[str, Tensor]:
    """Projection -> weights (out, in), for those of `names` whose gradient is wrong. Computed once per module."""
    dtype = backbone.model.dtype
    weights = {}
    for name in names:
        module = backbone.projections[name]
        if has_plain_weight(module):
            continue
        if module not in _known:
            _known[module] = None if _has_right_gradient(module, dtype) else _weights(module, dtype)
        if (weight := _known[module]) is not None:
            weights[name] = weight
    return weights


def through(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Return y (..., out) with the gradient of x @ weight.T for x (..., in)."""
    passed: Tensor = _Through.apply(x, y.detach(), weight)  # type: ignore[no-untyped-call]
    return passed


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, _x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: NestedIOFunction, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        gradient = gradients[0]
        return gradient @ weight.to(gradient.dtype), None, None


def _has_right_gradient(module: nn.Module, dtype: torch.dtype) -> bool:
    """Test whether the backward pass uses the weight W of the forward pass: for g = v W, v . (W g) must equal |g|^2."""
    inside, out = linear_shape(module) or (0, 0)
    generator = torch.Generator().manual_seed(0)
    device = next(module.parameters()).device
    x, v = (torch.randn(1, n, generator=generator).to(device, dtype) for n in (inside, out))
    with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
        warnings.simplefilter("ignore")  # torch warns about such kernels
        y = first(module.forward(x.requires_grad_()))
        (g,) = torch.autograd.grad(y, x, v, allow_unused=True) if y.requires_grad else (None,)
    if g is None:
        return False
    with torch.no_grad():
        back = (v * (first(module.forward(g)) - first(module.forward(torch.zeros_like(g))))).float().sum()
    square = g.float().square().sum()
    return bool(square > 0) and abs(float(back / square) - 1) < _TOLERANCE


@torch.no_grad()
def _weights(module: nn.Module, dtype: torch.dtype) -> Tensor:
    """The weights (out, in) of a linear map: its output for the identity, minus its bias."""
    inside, _ = linear_shape(module) or (0, 0)
    device = next(module.parameters()).device
    parts = torch.split(torch.eye(inside, device=device, dtype=dtype), 1024)
    bias = first(module.forward(torch.zeros(1, inside, device=device, dtype=dtype)))
    return torch.cat([first(module.forward(part)) - bias for part in parts]).T.contiguous()
