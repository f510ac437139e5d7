"""`Host`: what the core may ask of whoever has the model, without knowing who that is. An `Engine` is one."""

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
    """Has a model, and the one thread that may touch it."""

    @property
    def fingerprint(self) -> str:
        """Of the model: what was made of its hidden states belongs to no other."""
        ...

    @property
    def max_length(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        ...

    def with_model(self, call: Callable[[Backbone, PromptBuilder], T]) -> T:
        """Call something with the model's parts on the model's thread, between batches, and wait for what it returns.

        Raises:
            EngineClosedError, and whatever `call` does.
        """
        ...

    def tapped(self, requests: Sequence[Request], taps: Sequence[Tap]) -> list[Tap]:
        """Run requests, a tap each, as far as the taps want them to; returns the taps, which have read.

        Raises:
            PromptTooLongError, EngineClosedError, and whatever the requests' own processors do.
        """
        ...
