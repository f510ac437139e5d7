"""The base model's logits beside the memorized ones, from one forward pass, so that weights are read only once.

    x (B, T, D) ──> [x; x of rows] ──> last FFN ──┬─> B, with their adapters ──> (+) ──> norm, ... ──> h  ──┐
                                                  └─> G, without ─────────────> (+) ──> norm, ... ──> h0 ──┤
                          own logits (B, T, V) <──┬── head <── [h; h0] <───────────────────────────────────┘
                         base logits (G, T, V) <──┘

G of the B rows are needed twice. Between the FFN and the head, and after the head, the model processes only its own B
rows. The code that applies adapters must leave the last G rows of the FFN without one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from memograft.model.backbone import Backbone, Output, first, replace_first

__all__ = ["BaseLogits", "base_logits"]

P = ParamSpec("P")
T = TypeVar("T")
Args = tuple[Tensor, ...]  # arguments of FFN and head
Kwargs = dict[str, Tensor]


@contextmanager
def base_logits(backbone: Backbone, batch: int, rows: Sequence[int]) -> Iterator[BaseLogits]:
    """Inside, each forward pass of this thread over `batch` rows also yields the base model's logits of `rows`.

    Enter it after `applied`, so that its hooks see the adapters' part of the FFN's output.
    """
    seen = BaseLogits(backbone, batch, rows)
    first_of_ffn, head = backbone.ffn[0], backbone.head
    # The first hook before the FFN and the last after it, so that the user's own hooks see all rows.
    handles = [
        first_of_ffn.register_forward_pre_hook(seen.mine(seen.on_ffn_input), with_kwargs=True, prepend=True),
        backbone.ffn_end.register_forward_hook(seen.mine(seen.on_ffn)),
        backbone.layer.register_forward_hook(seen.mine(seen.on_layer)),
        head.register_forward_pre_hook(seen.mine(seen.on_head_input), with_kwargs=True, prepend=True),
        head.register_forward_hook(seen.mine(seen.on_head)),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class BaseLogits:
    """The base model's logits for G rows of the latest forward pass; see `base_logits`.

    Attributes:
        logits: (G, T, V) float32, for the positions that the head was called with.
    """

    logits: Tensor

    def __init__(self, backbone: Backbone, batch: int, rows: Sequence[int]) -> None:
        self._backbone, self._batch, self._owner = backbone, batch, threading.current_thread()
        self._rows = torch.tensor(rows, device=backbone.device)
        self._change: Tensor  # base minus adapted FFN output (G, T, D)
        self._hidden: Tensor  # the base model's input to the head (G, T, D)

    def mine(self, hook: Callable[P, T]) -> Callable[P, T | None]:
        """Wrap a hook so that it ignores calls from other threads."""

        def deaf(*args: P.args, **kwargs: P.kwargs) -> T | None:
            return hook(*args, **kwargs) if threading.current_thread() is self._owner else None

        return deaf

    def on_ffn_input(self, _module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Before the FFN: append a second copy of `rows`."""
        x = _input(args, kwargs)
        by_row = x.reshape(self._batch, -1, x.shape[-1])  # OPT flattens B and T
        return _with_input(args, kwargs, torch.cat([by_row, self._of(by_row)]).reshape(-1, *x.shape[1:]))

    def on_ffn(self, _module: nn.Module, _args: object, output: Output) -> Output:
        """After the FFN and its norm: remove the copies, so that the layer continues with the B rows."""
        y = first(output)
        by_row = y.reshape(self._batch + len(self._rows), -1, y.shape[-1])
        own, base = by_row[: self._batch], by_row[self._batch :]
        self._change = base - self._of(own)
        return replace_first(output, own.reshape(-1, *y.shape[1:]))

    def on_layer(self, _module: nn.Module, _args: object, output: Output) -> None:
        """After the last layer: compute its output without adapters, and from it the head's input."""
        self._hidden = self._backbone.join(self._change, self._of(first(output)))

    def on_head_input(self, _module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Before the head: append the base model's input for the same positions."""
        hidden = _input(args, kwargs)
        return _with_input(args, kwargs, torch.cat([hidden, self._hidden[:, -hidden.shape[1] :].to(hidden)]))

    def on_head(self, _module: nn.Module, _args: object, output: Output) -> Output:
        """After the head: remove the base model's rows."""
        raw = first(output)
        self.logits = self._backbone.finish(raw[self._batch :])
        return replace_first(output, raw[: self._batch])

    def _of(self, tensor: Tensor) -> Tensor:
        return tensor[self._rows.to(tensor.device)]


def _input(args: Args, kwargs: Kwargs) -> Tensor:
    return args[0] if args else next(iter(kwargs.values()))


def _with_input(args: Args, kwargs: Kwargs, tensor: Tensor) -> tuple[Args, Kwargs]:
    """The return value of a forward pre-hook that replaces what `_input` reads by `tensor`."""
    return ((tensor, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): tensor})
