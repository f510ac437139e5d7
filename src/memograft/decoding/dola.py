"""DoLa: contrast the last layer with an earlier one (arXiv 2309.03883).

    l = log p_N - log p_j,   for tokens with p_N >= 0.1 max p_N; all others have no probability       (equations 2, 3)
    p_j = softmax(head(h_j)),   j = the candidate with the largest JSD(p_N, p_j)                      (equation 4)

p_N is the row's distribution after its memory and rules, h_j (D,) the state that layer j begins with, without the final
norm. With one candidate j is fixed ("static" in the paper), with several it is chosen for each token and row. The
released code chooses it for the mean of a batch.

The states are recorded by hooks on the candidate layers, within the same pass. Each candidate costs one more head.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from memograft.decoding.divergence import jensen_shannon
from memograft.errors import SettingsError
from memograft.model.backbone import Backbone, first, unsupported

__all__ = ["Dola", "early_states"]

_SHALLOW = 40  # models with more layers have their candidates among the first or the last 20
_LEAST = 0.1  # of the largest probability
_NEVER = -1e4  # finite, and without probability in float32


@dataclass(frozen=True)
class Dola:
    """A member of a request's `processors`. It acts after memory and rules and before all other logits processors; no
    memory and no documents are needed.

    Attributes:
        layers: the candidates: "high", every second layer of the upper half (better for short answers that are facts);
            "low", of the lower half (better for reasoning); or numbers of layers, counted from 0.

    Raises:
        SettingsError: `layers` is something else.

    Example:
        >>> from memograft import Engine
        >>> engine = Engine.from_pretrained("tiny")
        >>> engine.answer("What is the capital of France?", processors=[Dola()]).text
        'The capital of France is Paris.'
    """

    layers: Literal["low", "high"] | tuple[int, ...] = "high"

    def __post_init__(self) -> None:
        layers: object = self.layers
        if isinstance(layers, list):
            object.__setattr__(self, "layers", layers := tuple(layers))
        numbers = isinstance(layers, tuple) and layers and all(type(n) is int and n >= 0 for n in layers)
        if layers not in ("low", "high") and not numbers:
            raise SettingsError(f'`layers` must be "low", "high" or numbers of layers from 0, got {layers!r}')

    def candidates(self, backbone: Backbone) -> tuple[int, ...]:
        """The candidate layers of a model.

        Raises:
            SettingsError: the model has no layer of a number.
            UnsupportedModelError: its layers cannot be found.
        """
        count = len(_layers(backbone))
        if isinstance(self.layers, tuple):
            if beyond := [n for n in self.layers if n >= count]:
                raise SettingsError(f"`layers` of Dola must be below {count}, the model's layers, got {beyond[0]}")
            return tuple(dict.fromkeys(self.layers))
        model = backbone.model
        head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
        tied = head is not None and head.weight is embeddings.weight
        begin = 2 if tied else 0  # with a tied head, the first states would give back the input token
        middle = count // 2 if count <= _SHALLOW else 20
        if self.layers == "low":
            return tuple(range(min(begin, middle - 1), middle, 2))
        return tuple(range(count - middle if count > _SHALLOW else middle, count, 2))

    @staticmethod
    def contrasted(backbone: Backbone, logits: Tensor, states: Tensor) -> Tensor:
        """(V,) logits, and the states of the candidate layers (candidates, D) -> (V,)."""
        own = logits.log_softmax(-1)
        early = backbone.finish(first(backbone.head(states[None])))[0].to(logits)  # (candidates, V)
        chosen = early[jensen_shannon(own.expand_as(early), early).argmax()]
        likely = own >= own.max() + torch.tensor(_LEAST).log()
        return torch.where(likely, own - chosen.log_softmax(-1), _NEVER)


@contextmanager
def early_states(backbone: Backbone, layers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Inside, each pass of this thread over N rows records the states (N, D) with which these layers begin, of the
    rows' first tokens."""
    states: dict[int, Tensor] = {}
    owner, modules = threading.current_thread(), _layers(backbone)

    def catch(number: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            if threading.current_thread() is owner:
                states[number] = (args[0] if args else kwargs["hidden_states"])[:, 0]

        return hook

    handles = [modules[n].register_forward_pre_hook(catch(n), with_kwargs=True) for n in sorted(set(layers))]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _layers(backbone: Backbone) -> list[nn.Module]:
    """The decoder layers: the list that ends with the last one."""
    for module in backbone.model.modules():
        if isinstance(module, nn.ModuleList) and len(module) and module[-1] is backbone.layer:
            return list(module)
    raise unsupported("DoLa needs a list of layers, and this model has none that can be found", "leave Dola out")
