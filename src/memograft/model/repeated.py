"""The frozen outputs of the last FFN's linear maps for inputs that are given again and again, computed once.

    x ──> W ──> y      first pass: y is kept
    x ──> 0 rows ──> W; y ──> + the adapter's part      every later pass with the same x

While an adapter is trained, gate and up always have the same input, so most of an FFN's multiplications give the same
numbers at every step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from memograft.model.backbone import Backbone, has_plain_weight

__all__ = ["Delta", "Repeated"]

Delta = Callable[[Tensor, Tensor], Tensor]  # (projection's input, its frozen output) -> its new output


class Repeated:
    """Inputs of the FFN. Maps of other inputs (down), quantised maps and maps with other hooks run as usual.

    Args:
        backbone: the model.
        inputs: they must not change.
    """

    def __init__(self, backbone: Backbone, inputs: Sequence[Tensor]) -> None:
        self._inputs, self._owner = {x.data_ptr(): x for x in inputs}, threading.current_thread()
        self._maps = {n: m for n, m in backbone.projections.items() if type(m) in (nn.Linear, Conv1D) and _is_bare(m)}
        self._kept: dict[tuple[str, int], Tensor] = {}  # by the map and the input's address
        self._given: dict[str, Tensor] = {}  # the input of a map that is running on no rows

    @contextmanager
    def skipping(self) -> Iterator[None]:
        """Inside, in this thread, maps whose output is kept run on no rows."""

        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]:
            def skip(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
                if threading.current_thread() is not self._owner:
                    return None
                self._given.pop(name, None)  # of a pass that failed
                if (name, args[0].data_ptr()) not in self._kept or not self._is_known(args[0]):
                    return None
                self._given[name] = args[0]
                return (args[0].reshape(-1, args[0].shape[-1])[:0], *args[1:])

            return skip

        with ExitStack() as undo:
            for name, module in self._maps.items():
                undo.callback(module.register_forward_pre_hook(hook(name)).remove)
            yield

    def around(self, name: str, delta: Delta) -> Delta:
        """A delta that is given the kept output, and keeps it the first time."""

        def changed(x: Tensor, y: Tensor) -> Tensor:
            given = self._given.pop(name, None)
            if given is not None:
                return delta(given, self._kept[name, given.data_ptr()].view(*given.shape[:-1], y.shape[-1]))
            if name in self._maps and self._is_known(x):
                self._kept[name, x.data_ptr()] = y.detach()
            return delta(x, y)

        return changed

    def _is_known(self, x: Tensor) -> bool:
        own = self._inputs.get(x.data_ptr())
        return own is not None and x.numel() == own.numel() and x.dtype == own.dtype


def _is_bare(module: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks")  # torch has no public name for them
    return has_plain_weight(module) and not any(vars(module)[name] for name in hooks)
