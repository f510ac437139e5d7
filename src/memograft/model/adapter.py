"""Adapters, mostly on the last FFN: low-rank weights per projection, stacked so that each row of a batch has its own.

          x (B, T, in) ──> frozen W ──────────────> (+) ──> y (B, T, out)
                  └──> A (B, R, in) ─> B (B, out, R) ─┘

At run time they are forward hooks, which exist only inside `applied` and act only in the thread that entered it. On
disk they are PEFT LoRA folders (see `memory/folder.py`). A fully trained FFN is a LoRA of rank D: one factor is the
change of the weight, the other the identity.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from memograft.model.backbone import Backbone, linear_shape
from memograft.model.gradients import through
from memograft.model.repeated import Delta, Repeated

__all__ = ["Adapter", "added", "applied", "everywhere", "mean", "replaced", "stack"]


@dataclass(frozen=True)
class Adapter:
    """The weights of one memory, float32.

    Attributes:
        lora_a: projection name -> (R, in).
        lora_b: projection name -> (out, R); the change of the frozen weight is lora_b @ lora_a.
    """

    lora_a: Mapping[str, Tensor]
    lora_b: Mapping[str, Tensor]

    @property
    def rank(self) -> int:
        """R, which is the same for all projections, as vLLM and SGLang require."""
        return next(iter(self.lora_a.values())).shape[0]

    @property
    def named(self) -> dict[str, Tensor]:
        """All tensors: `<projection>.a` and `<projection>.b`."""
        return {f"{n}.a": t for n, t in self.lora_a.items()} | {f"{n}.b": t for n, t in self.lora_b.items()}

    @classmethod
    def from_dense(cls, changes: Mapping[str, Tensor], width: int) -> Adapter:
        """Make an exact LoRA of rank D = `width` from changes of whole weights, (out, in) each."""
        a, b = {}, {}
        for name, change in changes.items():
            eye = torch.eye(width, device=change.device)
            into = change.shape[1] == width
            a[name], b[name] = (eye, change) if into else (change, eye)
        return cls(a, b)


def mean(adapters: Sequence[Adapter], width: int) -> Adapter:
    """The adapter whose change is the mean of all changes. Its rank is the sum of ranks, at most D = `width`."""
    names = adapters[0].lora_a
    a = {name: torch.cat([adapter.lora_a[name] for adapter in adapters]) for name in names}
    b = {name: torch.cat([adapter.lora_b[name] for adapter in adapters], dim=1) / len(adapters) for name in names}
    if sum(adapter.rank for adapter in adapters) > width:
        return Adapter.from_dense({name: b[name] @ a[name] for name in names}, width)
    return Adapter(a, b)


def added(adapters: Sequence[Adapter]) -> Adapter:
    """The adapter whose change is the sum of all changes. Its rank is the sum of ranks."""
    shapes = {n: (own.lora_a[n].shape[1], own.lora_b[n].shape[0]) for own in adapters for n in own.lora_a}
    a, b = {}, {}
    for name, (inside, out) in shapes.items():
        device = next(own.lora_a[name].device for own in adapters if name in own.lora_a)
        pairs = [
            (own.lora_a[name], own.lora_b[name])
            if name in own.lora_a
            else (torch.zeros(own.rank, inside, device=device), torch.zeros(out, own.rank, device=device))
            for own in adapters
        ]
        a[name], b[name] = torch.cat([one for one, _ in pairs]), torch.cat([other for _, other in pairs], 1)
    return Adapter(a, b)


def stack(adapters: Sequence[Adapter | None], backbone: Backbone) -> dict[str, tuple[Tensor, Tensor]]:
    """Per projection (A (B, R, in), B (B, out, R)); zero for rows without an adapter, and to fill up smaller ranks."""
    rank = max((a.rank for a in adapters if a is not None), default=0)
    names = sorted({n for a in adapters if a is not None for n in a.lora_a})
    stacked = {}
    for name in names:
        inside, out = linear_shape(backbone.projections[name]) or (0, 0)
        device = next(backbone.projections[name].parameters()).device
        a = torch.zeros(len(adapters), rank, inside, device=device)
        b = torch.zeros(len(adapters), out, rank, device=device)
        for row, adapter in enumerate(adapters):
            if adapter is not None and name in adapter.lora_a:
                a[row, : adapter.rank] = adapter.lora_a[name]
                b[row, :, : adapter.rank] = adapter.lora_b[name]
        stacked[name] = (a, b)
    return stacked


@contextmanager
def applied(
    backbone: Backbone,
    stacked: Mapping[str, tuple[Tensor, Tensor]],
    bare: int = 0,
    stand_ins: Mapping[str, Tensor] | None = None,
    repeated: Repeated | None = None,
) -> Iterator[None]:
    """Inside, in this thread, row n of every batch runs through adapter n. The hooks are removed at the end.

    The last `bare` rows that reach the FFN come after the rows with adapters and run without one. `stand_ins` are
    weights for the backward pass of projections that give no gradient (see `model/gradients.py`). `repeated` is an
    input of the FFN that is given many times (see `model/repeated.py`).
    """

    def low_rank(a: Tensor, b: Tensor, weight: Tensor | None) -> Delta:
        def delta(x: Tensor, y: Tensor) -> Tensor:
            if weight is not None and torch.is_grad_enabled():
                y = through(x, y, weight)
            rows = x.reshape(len(a) + bare, -1, x.shape[-1])[: len(a)].to(a.dtype)  # OPT and MoE blocks flatten (B, T)
            change = nn.functional.pad((rows @ a.mT) @ b.mT, (0, 0, 0, 0, 0, bare))
            return y + change.reshape(y.shape).to(y.dtype)

        return delta

    weights = stand_ins or {}
    deltas = {name: low_rank(a, b, weights.get(name)) for name, (a, b) in stacked.items()}
    if repeated is not None:
        deltas = {name: repeated.around(name, delta) for name, delta in deltas.items()}
    with repeated.skipping() if repeated is not None else nullcontext(), _hooked(backbone.projections, deltas):
        yield


@contextmanager
def everywhere(modules: Mapping[str, nn.Module], adapter: Adapter) -> Iterator[None]:
    """Inside, in this thread, these linear maps have the adapter for every row and token. Gradients reach it."""

    def low_rank(a: Tensor, b: Tensor) -> Delta:
        return lambda x, y: y + nn.functional.linear(nn.functional.linear(x.to(a.dtype), a), b).to(y.dtype)

    with _hooked(modules, {name: low_rank(a, adapter.lora_b[name]) for name, a in adapter.lora_a.items()}):
        yield


@contextmanager
def replaced(backbone: Backbone, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, in this thread, the projections use these float32 weights (out, in) instead of the frozen ones."""

    def dense(weight: Tensor, bias: Tensor | None) -> Delta:
        return lambda x, y: nn.functional.linear(x.to(weight.dtype), weight, bias).to(y.dtype)

    deltas = {name: dense(w, _bias(backbone.projections[name])) for name, w in weights.items()}
    with _hooked(backbone.projections, deltas):
        yield


def dense_weights(backbone: Backbone, names: Sequence[str]) -> dict[str, Tensor]:
    """float32 copies of the frozen weights, (out, in) each."""
    weights = {}
    for name in names:
        module = backbone.projections[name]
        weight = module.weight.detach().float()  # type: ignore[operator]
        weights[name] = (weight.T if isinstance(module, Conv1D) else weight).clone()
    return weights


def _bias(module: nn.Module) -> Tensor | None:
    bias = getattr(module, "bias", None)
    return bias.detach().float() if isinstance(bias, Tensor) else None


@contextmanager
def _hooked(modules: Mapping[str, nn.Module], deltas: Mapping[str, Delta]) -> Iterator[None]:
    owner = threading.current_thread()

    def hook(delta: Delta) -> Callable[..., Any]:
        def run(_module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            return delta(args[0], output) if threading.current_thread() is owner else None

        return run

    with ExitStack() as undo:
        for name, delta in deltas.items():
            undo.callback(modules[name].register_forward_hook(hook(delta)).remove)
        yield
