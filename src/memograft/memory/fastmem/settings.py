"""Settings of FastMem in three parts: training, choice of documents, decoding."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, TypeGuard

from memograft.decoding.contrast import Alpha, check_alpha
from memograft.errors import SettingsError, UnsupportedModelError
from memograft.memory.fastmem.relevance import AUTO
from memograft.model.backbone import Backbone, has_plain_weight

__all__ = ["AUTOMATIC", "Selecting", "Speaking", "Training", "check_relevance"]

# Values of "auto" for models without a memograft_config.json. Steps, learning rate and target were chosen on the tuning
# split of NQ-SWAP with SmolLM2-135M-Instruct (docs/method.md): beyond this small KL, the model only recites more.
# `max_kl` is four times the target; it matters for memories without a target.
AUTOMATIC: Mapping[str, Any] = {
    "steps": 4,
    "learning_rate": 3e-3,
    "target_kl": 0.25,
    "relevance": AUTO,
    "shortlist": 1024,
    "max_kl": 1.0,
}


@dataclass(frozen=True)
class Training:
    """Settings that, together with the model and the context, determine the weights."""

    steps: int | Literal["auto"] = "auto"
    learning_rate: float | Literal["auto"] = "auto"
    kl_weight: float = 0.1
    target_kl: float | Literal["auto"] | None = "auto"
    adapter: Literal["lora", "full"] = "lora"
    rank: int = 16
    template: Literal["prompt", "assistant"] = "prompt"
    shortlist: int | Literal["auto"] | None = "auto"
    max_kl: float | Literal["auto"] = "auto"
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    seed: int = 0
    end: bool = True
    compose: bool = False

    def _check_training(self) -> None:
        _one_of(self, "adapter", ("lora", "full"))
        _one_of(self, "template", ("prompt", "assistant"))
        whole: Mapping[str, tuple[str | None, ...]] = {"steps": ("auto",), "rank": ()}
        positive = {"learning_rate": ("auto",), "target_kl": ("auto", None), "max_kl": ("auto",)}
        for name, others in whole.items():
            value = getattr(self, name)
            if value not in others and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise SettingsError(f"`{name}` must be a whole number of at least 1{_or(others)}, got {value!r}")
        for name, others in positive.items():
            value = getattr(self, name)
            if value not in others and not (_is_number(value) and value > 0):
                raise SettingsError(f"`{name}` must be a positive number{_or(others)}, got {value!r}")
        _not_negative(self, "kl_weight", "weight_decay")
        if self.clip_norm is not None and (not _is_number(self.clip_norm) or self.clip_norm <= 0):
            raise SettingsError(
                f"`clip_norm` must be a positive number, or None for no clipping, got {self.clip_norm!r}"
            )
        if self.shortlist not in ("auto", None) and (not isinstance(self.shortlist, int) or self.shortlist < 2):
            raise SettingsError(f"`shortlist` must be at least 2 tokens, or None for all, got {self.shortlist!r}")
        if not isinstance(self.seed, int) or not -(2**63) <= self.seed < 2**63:
            raise SettingsError(f"`seed` must be a whole number, got {self.seed!r}")
        _boolean(self, "end")
        _boolean(self, "compose")

    @property
    def training(self) -> Training:
        """Only the settings of `Training`."""
        return Training(**{field.name: getattr(self, field.name) for field in fields(Training)})

    def resolved(self, own: Mapping[str, Any] | None = None) -> Self:
        """Replace "auto" by the model's own values (`own`, see `memograft.model.config`), or else by `AUTOMATIC`.

        Raises:
            SettingsError: `own` sets something that cannot be "auto", or a value is out of its range.
        """
        if others := sorted(set(own or ()) - set(AUTOMATIC)):
            raise SettingsError(
                f"a model's memograft_config.json may set {', '.join(AUTOMATIC)}, got {', '.join(others)}; remove "
                "the others, or write the file again with `memograft tune`"
            )
        values = {**AUTOMATIC, **{n: v for n, v in (own or {}).items() if v != "auto"}}
        return replace(self, **{n: v for n, v in values.items() if getattr(self, n, None) == "auto"})

    def check(self, backbone: Backbone, _fingerprint: str = "") -> None:
        """Refuse an unsupported model before anything is computed.

        Raises:
            UnsupportedModelError: the last FFN has no linear maps to adapt, or it is quantised or offloaded and
                `adapter="full"` needs its weights.
        """
        if not backbone.projections:
            raise UnsupportedModelError(
                "FastMem adapts the linear maps of the last FFN, and this model's has routed experts only; "
                "answer with memory=None, or use a dense model or one with a shared expert"
            )
        if self.adapter == "full" and not all(has_plain_weight(m) for m in backbone.projections.values()):
            raise UnsupportedModelError(
                'FastMem(adapter="full") trains the weights themselves, and this model\'s last FFN is quantised or '
                'offloaded; use adapter="lora"'
            )


def check_relevance(name: str, value: object, otherwise: str) -> None:
    """Raise a SettingsError unless `value` is "auto", a relevance, or None; `otherwise` says what None does."""
    if value is not None and value != "auto" and not (_is_number(value) and value <= 1):
        raise SettingsError(f'`{name}` must be "auto", a number of at most 1, or None to {otherwise}, got {value!r}')


@dataclass(frozen=True)
class Selecting:
    """Which documents of a request are memorized."""

    relevance: float | Literal["auto"] | None = "auto"
    cad_relevance: float | None = None
    conflicts: Literal["first"] | None = "first"

    def _check_selecting(self) -> None:
        _one_of(self, "conflicts", (None, "first"))
        if self.cad_relevance is not None:
            if not (_is_number(self.cad_relevance) and self.cad_relevance <= 1):
                raise SettingsError(
                    f"`cad_relevance` must be a number of at most 1, or None for that of `relevance`, got "
                    f"{self.cad_relevance!r}"
                )
            if self.relevance is None:
                raise SettingsError(
                    f"`cad_relevance` must be None if `relevance` is, because no document is judged then, got "
                    f"{self.cad_relevance!r}; leave one of them out"
                )
        check_relevance("relevance", self.relevance, "memorize every document")

    @property
    def threshold(self) -> float | None:
        """`relevance` as a number, or None."""
        return AUTO if self.relevance == "auto" else self.relevance

    def contrasts(self, relevance: Sequence[float]) -> bool:
        """Whether Cad is used with documents of these relevances; empty if they were not judged."""
        least = self.threshold if self.cad_relevance is None else self.cad_relevance
        return least is None or not relevance or max(relevance) >= least


@dataclass(frozen=True)
class Speaking:
    """How the answer is decoded from the distributions with and without the memory, and without the documents."""

    gate: Literal["support"] | None = None
    contrast: Alpha = 0.0
    cad: Alpha = 0.0
    fallback: bool = True

    def _check_speaking(self) -> None:
        _one_of(self, "gate", (None, "support"))
        check_alpha("contrast", self.contrast)
        check_alpha("cad", self.cad)
        _boolean(self, "fallback")


def _one_of(settings: object, name: str, allowed: Sequence[str | None]) -> None:
    if getattr(settings, name) not in allowed:
        raise SettingsError(f"`{name}` must be one of {tuple(allowed)}, got {getattr(settings, name)!r}")


def _boolean(settings: object, name: str) -> None:
    if not isinstance(getattr(settings, name), bool):
        raise SettingsError(f"`{name}` must be True or False, got {getattr(settings, name)!r}")


def _not_negative(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not _is_number(value) or value < 0:
            raise SettingsError(f"`{name}` must be a number that is not negative, got {value!r}")


def _or(others: Sequence[str | None]) -> str:
    """The values besides a number that a setting accepts, as the end of a sentence."""
    return "".join(f" or {json.dumps(o)}" if o else ", or None for no end" for o in others)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
