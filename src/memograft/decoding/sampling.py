"""`Sampling`: how tokens are chosen. Plain data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memograft.errors import SettingsError

__all__ = ["Sampling", "is_number", "is_whole"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: length of the answer at most; it also ends where the model's window does.
        temperature: 0 is greedy.
        top_p: smallest set of tokens with this much probability.
        top_k: number of likeliest tokens to choose from; None is all.
        stop: strings that end the answer; they are not part of it.
        seed: makes a sampled answer repeatable, whatever else is in the batch.

    Raises:
        SettingsError: a value out of its range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    stop: Sequence[str] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        if not is_whole(self.max_new_tokens) or self.max_new_tokens < 1:
            raise SettingsError(f"`max_new_tokens` must be a whole number of at least 1, got {self.max_new_tokens!r}")
        if not (is_number(self.temperature) and 0 <= self.temperature < math.inf):
            raise SettingsError(f"`temperature` must be 0 (greedy) or more, got {self.temperature!r}")
        if not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise SettingsError(f"`top_p` must be above 0 and at most 1, got {self.top_p!r}")
        if self.top_k is not None and (not is_whole(self.top_k) or self.top_k < 1):
            raise SettingsError(f"`top_k` must be at least 1, or None for all tokens, got {self.top_k!r}")
        if self.seed is not None and not (is_whole(self.seed) and -(2**63) <= self.seed < 2**63):
            raise SettingsError(f"`seed` must be a whole number or None, got {self.seed!r}")
        if not isinstance(self.stop, Iterable):
            raise SettingsError(f"`stop` must be a string or a list of strings, got {self.stop!r}; leave it out")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(s, str) and s for s in stop):
            raise SettingsError(f"`stop` must hold strings that are not empty, got {list(stop)!r}; leave it out")
        object.__setattr__(self, "stop", stop)


def is_number(value: object) -> bool:
    """Whether it is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)
