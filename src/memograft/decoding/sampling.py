"""`Sampling`: how tokens are chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from memograft.errors import SettingsError

__all__ = ["Sampling", "is_number", "is_whole"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: maximum length of the answer. The model's window may end it earlier.
        temperature: 0 is greedy.
        top_p: sample from the smallest set of tokens with this much probability.
        top_k: sample from this many most likely tokens; None: from all.
        stop: strings that end the answer; they are not part of it.
        seed: makes a sampled answer reproducible, independent of the rest of the batch.
        min_p: tokens with less than this fraction of the most likely token's probability are not sampled; 0 keeps all.
        repetition_penalty: above 1, tokens of the prompt and of the answer so far become less likely (arXiv 1909.05858,
            as transformers computes it); 1 has no effect. None uses the model's generation_config.
        presence_penalty: subtracted from the logit of each token that the answer has so far, as OpenAI's API defines
            it. The prompt does not count.
        frequency_penalty: the same, times the number of its occurrences in the answer.
        logit_bias: token id -> number added to its logit before the penalty and sampling; -100 practically bans a
            token. An id may also be a string of digits, as in JSON. `Engine.encode` returns the ids of a text.

    Raises:
        SettingsError: a value is out of its range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    stop: Sequence[str] = ()
    seed: int | None = None
    min_p: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

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
        if not (is_number(self.min_p) and 0 <= self.min_p <= 1):
            raise SettingsError(f"`min_p` must be 0 (keeps all tokens) to 1, got {self.min_p!r}")
        penalty = self.repetition_penalty
        if penalty is not None and not (is_number(penalty) and 0 < penalty < math.inf):
            raise SettingsError(
                f"`repetition_penalty` must be above 0 (1 has no effect), or None for the model's own, got {penalty!r}"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if not (is_number(value) and math.isfinite(value)):
                raise SettingsError(f"`{name}` must be a finite number (0 has no effect), got {value!r}")
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        if not isinstance(self.stop, Iterable):
            raise SettingsError(f"`stop` must be a string or a list of strings, got {self.stop!r}; leave it out")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(s, str) and s for s in stop):
            raise SettingsError(f"`stop` must hold strings that are not empty, got {list(stop)!r}; leave it out")
        object.__setattr__(self, "stop", stop)


def _checked_bias(bias: object) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise SettingsError(f"`logit_bias` must map token ids to numbers, got {bias!r:.80}; write {{1234: -100}}")
    checked = {}
    for token, value in bias.items():
        id = int(token) if isinstance(token, str) and token.isdecimal() else token
        if not is_whole(id) or id < 0:
            raise SettingsError(
                f"the keys of `logit_bias` must be token ids, got {token!r:.80}; `Engine.encode` has those of a text"
            )
        if not (is_number(value) and math.isfinite(value)):
            raise SettingsError(
                f"the values of `logit_bias` must be finite numbers, got {value!r} for token {id}; -100 all but bans it"
            )
        checked[id] = float(value)
    return checked


def is_number(value: object) -> bool:
    """Whether it is a number; bool does not count."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    """Whether it is an integer; bool does not count."""
    return isinstance(value, int) and not isinstance(value, bool)
