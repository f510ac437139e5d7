"""A causal LM as memorizing sees it: a trunk, its last FFN, and a tail.

    trunk ──> x ──> last FFN ──> post ──(* scale)──┐
          └─> residual ────────────────────────── (+) ──> norm, ... ──> head ──> scale, cap ──> logits

`x` (B, T, D) is the FFN's input, `residual` (B, T, D) is what its output is added to. The parts are found by observing
a forward pass, never from the model's name, and then verified: replaying the tail from (x, residual) must give the
model's own logits, otherwise loading fails.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from memograft.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel
    from transformers.utils import ModelOutput

__all__ = ["Backbone"]

Output = Tensor | tuple[Tensor, *tuple[object, ...]]  # of a module: a tensor, or a tuple beginning with one


@dataclass(frozen=True, eq=False)
class Backbone:
    """A causal LM split at its last FFN. Make one with `Backbone.of(model)`.

    Attributes:
        model: the user's model, unchanged.
        layer: the last decoder layer.
        ffn: the modules that form the last FFN, in order.
        post: norms between the FFN's output and the residual sum (Gemma 2 and 3, OLMo 2).
        residual_scale: factor on the FFN's output before it is added to the residual (Granite), else 1.
        tail: modules from the last layer's output to the head, including the head.
        projections: qualified name -> linear map of the FFN that adapters may change. Every token passes each of them
            once, so routed experts are not included.
        max_length: number of positions in the model's configuration.
        logit_scale: factor on the head's output (Granite, Cohere).
        logit_cap: c of c * tanh(logits / c), applied last (Gemma 2); None for no cap.
    """

    model: PreTrainedModel
    layer: nn.Module
    ffn: tuple[nn.Module, ...]
    post: tuple[nn.Module, ...]
    residual_scale: float
    tail: tuple[nn.Module, ...]
    projections: dict[str, nn.Module]
    max_length: int
    logit_scale: float = 1.0
    logit_cap: float | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Backbone:
        """Find and verify the parts of a loaded causal LM.

        Raises:
            UnsupportedModelError: an encoder-decoder, a model in training mode, a cache with more than keys and values,
                or a model whose tail cannot be replayed.
        """
        from memograft.model.anatomy import dissect  # anatomy imports this module

        return dissect(model)

    @property
    def width(self) -> int:
        """D."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def vocabulary(self) -> int:
        """V, including padding of the head."""
        shape = linear_shape(self.head)
        return shape[1] if shape else int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def device(self) -> torch.device:
        """The device of the token ids."""
        return input_weight(self.model).device

    @property
    def ffn_end(self) -> nn.Module:
        """The module whose output is added to the residual: the FFN's last part, or the norm after it."""
        return (*self.ffn, *self.post)[-1]

    @property
    def head(self) -> nn.Module:
        """The linear map from D to V."""
        return self.tail[-1]

    @property
    def has_plain_head(self) -> bool:
        """Whether the head is a linear map whose weights can be read, so that it can be applied to some tokens only."""
        return isinstance(self.head, nn.Linear) and has_plain_weight(self.head)

    def run_ffn(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D): the FFN and the norms after it."""
        for module in (*self.ffn, *self.post):
            x = first(module(x))
        return x

    def hidden(self, x: Tensor, residual: Tensor) -> Tensor:
        """(B, T, D), (B, T, D) -> (B, T, D): the head's input, with the active adapter."""
        return self.join(self.run_ffn(x), residual)

    def join(self, ffn_out: Tensor, residual: Tensor) -> Tensor:
        """(B, T, D), (B, T, D) -> (B, T, D): the head's input, from the output of `run_ffn` and the residual."""
        h = residual + ffn_out * self.residual_scale
        for module in self.tail[:-1]:
            h = first(module(h))
        return h

    def finish(self, raw: Tensor) -> Tensor:
        """The head's output (..., V or S) -> logits in float32, scaled and capped as in the model. May share memory."""
        logits = raw.float()
        if self.logit_scale != 1:
            logits = logits * self.logit_scale
        return logits if self.logit_cap is None else torch.tanh(logits / self.logit_cap) * self.logit_cap

    def logits(self, x: Tensor, residual: Tensor) -> Tensor:
        """(B, T, D), (B, T, D) -> (B, T, V) float32."""
        return self.finish(first(self.head(self.hidden(x, residual))))

    @contextmanager
    def watch(self) -> Iterator[Watched]:
        """Inside, every forward pass of this thread records (x, residual).

        The last FFN's output is replaced by zeros, so that the layer's output is exactly the residual. The pass has
        therefore no meaningful logits, and a plain head is applied to no positions, because it is a large part of a
        short pass. Keys and values are correct, because they are computed before the last FFN.
        """
        seen = Watched()
        handles = [self.head.register_forward_pre_hook(seen.on_head_input)] if self.has_plain_head else []
        handles += [
            self.ffn[0].register_forward_pre_hook(seen.on_input, with_kwargs=True),
            self.ffn_end.register_forward_hook(seen.on_ffn),
            self.layer.register_forward_hook(seen.on_layer),
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


class Watched:
    """(x, residual) of the latest forward pass, each (B, T, D); see `Backbone.watch`."""

    def __init__(self) -> None:
        self._owner = threading.current_thread()
        self._x: Tensor | None = None
        self._residual: Tensor | None = None

    def on_input(self, _module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        """Before the FFN. Calls from other threads are ignored, here and in the other hooks."""
        if threading.current_thread() is self._owner:
            self._x = args[0] if args else next(iter(kwargs.values()))

    def on_ffn(self, _module: nn.Module, _args: object, output: Output) -> Output | None:
        """After the FFN and its norm. The return value replaces their output."""
        if threading.current_thread() is not self._owner:
            return None
        return replace_first(output, torch.zeros_like(first(output)))

    def on_layer(self, _module: nn.Module, _args: object, output: Output) -> None:
        """After the last layer."""
        if threading.current_thread() is self._owner:
            self._residual = first(output)

    def on_head_input(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Before the head. The return value replaces its input (B, T, D)."""
        if threading.current_thread() is not self._owner or not args:
            return None
        return (args[0][:, :0], *args[1:])

    def rows(self) -> tuple[Tensor, Tensor]:
        """(x, residual), each (B, T, D)."""
        assert self._x is not None, "no forward pass has run"
        assert self._residual is not None
        return self._x.reshape(self._residual.shape), self._residual  # OPT flattens B and T


def input_weight(model: PreTrainedModel) -> Tensor:
    """The embedding matrix (V, D)."""
    weight: Tensor = model.get_input_embeddings().weight
    return weight


def first(output: Output) -> Tensor:
    """A module's output tensor; some modules return it as the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


def replace_first(output: Output, tensor: Tensor) -> Output:
    """`output` with `tensor` in place of what `first` returns."""
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor


def cache_name(call: Callable[..., object]) -> str:
    """The name of the KV cache argument of `call`, which transformers 5.24 renamed."""
    return "cache" if "cache" in inspect.signature(call).parameters else "past_key_values"


def cache_of(output: ModelOutput) -> Cache | None:
    """The KV cache of a model's output, under either name."""
    return output.cache if hasattr(output, "cache") else getattr(output, "past_key_values", None)


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) features of a linear map, also if it is quantised; None for other modules."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return None


def has_plain_weight(module: nn.Module) -> bool:
    """Whether `module.weight` is plain numbers: not quantised (float8 has a separate scale) and not offloaded."""
    weight = getattr(module, "weight", None)
    plain = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    return isinstance(weight, Tensor) and weight.dtype in plain and weight.device.type != "meta"


def unsupported(reason: str, way_out: str) -> UnsupportedModelError:
    """The error for a model that is not supported."""
    return UnsupportedModelError(f"{reason}; {way_out}")
