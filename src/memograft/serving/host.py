"""`Host`: the part of an `Engine` that the rest of the core uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from memograft.decoding.tap import Tap
from memograft.model.backbone import Backbone
from memograft.prompt.builder import PromptBuilder
from memograft.request import Request

__all__ = ["Host"]

T = TypeVar("T")


class Host(Protocol):
    """Owns a model and decides who uses it at what time."""

    @property
    def fingerprint(self) -> str:
        """Of the model. Anything computed from its hidden states is valid for this model only."""
        ...

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of prompt and answer together."""
        ...

    def with_model(self, call: Callable[[Backbone, PromptBuilder], T]) -> T:
        """Call a function with the model's parts, while no other work uses them, and return its result.

        Raises:
            EngineClosedError, and whatever `call` raises.
        """
        ...

    def tapped(self, requests: Sequence[Request], taps: Sequence[Tap]) -> list[Tap]:
        """Run requests with one tap each, and return the taps.

        Raises:
            PromptTooLongError, EngineClosedError, and whatever the requests' own processors raise.
        """
        ...
