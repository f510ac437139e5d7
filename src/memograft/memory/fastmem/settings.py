"""`FastMem`: how a request's documents are memorized, as plain data, and what "auto" stands for. Computes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from memograft.errors import SettingsError, UnsupportedModelError
from memograft.memory.fastmem.relevance import AUTO
from memograft.model import config as model_config
from memograft.model.backbone import Backbone, has_plain_weight

__all__ = ["AUTOMATIC", "FastMem"]

# What "auto" stands for where the model brings nothing of its own. Step and target were chosen on the tuning split of
# NQ-SWAP with SmolLM2-135M-Instruct (docs/method.md): a small move, beyond which only reciting grows. `max_kl` is four
# times the target: it is for memories that have none.
AUTOMATIC: Mapping[str, Any] = {
    "learning_rate": 1e-3,
    "target_kl": 0.25,
    "relevance": AUTO,
    "shortlist": 1024,
    "max_kl": 1.0,
}


@dataclass(frozen=True)
class FastMem:
    """How a request's documents are memorized. The defaults suit a LoRA; `FastMem.paper()` is the published recipe.

    Attributes:
        steps: optimiser steps (paper: 10). More follow the documents more closely, and move the model further.
        learning_rate: of AdamW (paper: 1e-5 on the full FFN). "auto": see `AUTOMATIC`.
        kl_weight: beta, how strongly the model is held where it was (paper: 0.1).
        target_kl: nats per token; memorizing ends where the model has moved this far on the documents, whatever is left
            of `steps`, and takes back what the last step did too much. None has no such end (paper). "auto": see
            `AUTOMATIC`. Ours.
        adapter: "lora" trains low-rank changes, "full" the FFN's weights themselves (paper).
        rank: R of the LoRA; ignored by "full".
        targets: "all" projections of the FFN (paper) or only "down", the one that leads back to D.
        template: where the documents are memorized: "prompt", where they stand (one prefill), or "assistant", alone as
            an assistant turn (paper; a second prefill).
        gate: None, or "support": the base model's choice stands wherever that token occurs in the documents. Ours.
        contrast: alpha, how far answers are pushed from the base model's distribution (paper's "FastMem + CD": 0.5).
        relevance: documents that are less about the question than this are left in the prompt but not memorized; see
            `memograft.memory.fastmem.relevance`. "auto": see `AUTOMATIC`; None judges nothing and memorizes all
            (paper), whatever `conflicts` says. Ours.
        conflicts: "first": of relevant documents that contradict each other in what is asked, only the highest-ranked
            one is memorized; see `memograft.memory.fastmem.disagreement`. None memorizes them all (paper). Ours.
        shortlist: candidate tokens a step looks at, the rest of the vocabulary being one bucket; None looks at all
            (paper). "auto": see `AUTOMATIC`.
        max_kl: nats per token; a memory that moved the model further is rolled back. "auto": see `AUTOMATIC`.
        fallback: decode the base model's own answer beside the memorized one, as a further row of the batch, and give
            that where the memorized one repeats itself or does not end, and the base model's does neither. Not where
            the answer is streamed, or follows a schema or logits processors of the request's own. Ours.
        weight_decay: of AdamW (paper, as it really ran: 0.01).
        clip_norm: largest norm of a gradient (paper, as it really ran: 1.0); None does not clip.
        betas: of AdamW.
        eps: of AdamW.
        seed: of the LoRA's first factor.

    Raises:
        SettingsError: a value that can never work.
    """

    steps: int = 10
    learning_rate: float | Literal["auto"] = "auto"
    kl_weight: float = 0.1
    target_kl: float | Literal["auto"] | None = "auto"
    adapter: Literal["lora", "full"] = "lora"
    rank: int = 16
    targets: Literal["all", "down"] = "all"
    template: Literal["prompt", "assistant"] = "prompt"
    gate: Literal["support"] | None = None
    contrast: float = 0.0
    relevance: float | Literal["auto"] | None = "auto"
    conflicts: Literal["first"] | None = "first"
    shortlist: int | Literal["auto"] | None = "auto"
    max_kl: float | Literal["auto"] = "auto"
    fallback: bool = True
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {"adapter": ("lora", "full"), "targets": ("all", "down"), "template": ("prompt", "assistant")}
        for name, allowed in (choices | {"gate": (None, "support"), "conflicts": (None, "first")}).items():
            if getattr(self, name) not in allowed:
                raise SettingsError(f"`{name}` must be one of {allowed}, got {getattr(self, name)!r}")
        for name in ("steps", "rank"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SettingsError(f"`{name}` must be a whole number of at least 1, got {value!r}")
        for name, others in {
            "learning_rate": ("auto",),
            "target_kl": ("auto", None),
            "max_kl": ("auto",),
            "eps": (),
        }.items():
            value = getattr(self, name)
            if value not in others and not (_is_number(value) and value > 0):
                raise SettingsError(f"`{name}` must be a positive number{_or(others)}, got {value!r}")
        for name in ("kl_weight", "weight_decay", "contrast"):
            value = getattr(self, name)
            if not _is_number(value) or value < 0:
                raise SettingsError(f"`{name}` must be a number that is not negative, got {value!r}")
        if self.clip_norm is not None and (not _is_number(self.clip_norm) or self.clip_norm <= 0):
            raise SettingsError(
                f"`clip_norm` must be a positive number, or None for no clipping, got {self.clip_norm!r}"
            )
        if self.threshold is not None and not (_is_number(self.threshold) and self.threshold <= 1):
            raise SettingsError(
                f'`relevance` must be "auto", a number of at most 1, or None to memorize every document, got '
                f"{self.relevance!r}"
            )
        if self.shortlist not in ("auto", None) and (not isinstance(self.shortlist, int) or self.shortlist < 2):
            raise SettingsError(f"`shortlist` must be at least 2 tokens, or None for all, got {self.shortlist!r}")
        if not isinstance(self.seed, int) or not -(2**63) <= self.seed < 2**63:
            raise SettingsError(f"`seed` must be a whole number, got {self.seed!r}")
        if not isinstance(self.fallback, bool):
            raise SettingsError(f"`fallback` must be True or False, got {self.fallback!r}")
        two = isinstance(self.betas, Sequence) and len(self.betas) == 2
        if not two or not all(_is_number(b) and 0 <= b < 1 for b in self.betas):
            raise SettingsError(f"`betas` must be two numbers of at least 0 and below 1, got {self.betas!r}")
        object.__setattr__(self, "betas", tuple(self.betas))  # settings are keys of dicts, and JSON has lists only

    @property
    def threshold(self) -> float | None:
        """`relevance` as a number, or None."""
        return AUTO if self.relevance == "auto" else self.relevance

    def resolved(self, own: Mapping[str, Any] | None = None) -> FastMem:
        """With numbers for what is "auto": what the model brings (`own`, see `memograft.model.config`), or `AUTOMATIC`.

        Raises:
            SettingsError: the model brings something that is never "auto", or a value that can never work.
        """
        if others := sorted(set(own or ()) - set(AUTOMATIC)):
            raise SettingsError(
                f"a model's memograft_config.json may set {', '.join(AUTOMATIC)}, got {', '.join(others)}; remove "
                "what is not among them, or write the file anew with `memograft tune`"
            )
        values = {**AUTOMATIC, **{n: v for n, v in (own or {}).items() if v != "auto"}}
        return replace(self, **{n: v for n, v in values.items() if getattr(self, n) == "auto"})

    @classmethod
    def load(cls, path: str | Path) -> FastMem:
        """Settings from a file of `save` or `memograft tune`, or from the folder that holds one.

        Raises:
            SettingsError: there is none, or it is no such file.
        """
        try:
            return cls(**model_config.read(path))
        except TypeError as e:
            raise SettingsError(f"{path} holds something that is no setting of FastMem ({e}); write it anew") from e

    def save(self, path: str | Path, about: Mapping[str, Any] | None = None) -> Path:
        """Write these settings to a file, or to a folder as memograft_config.json; `about` says where they come from.

        In a model's folder they stand in for what a request leaves at "auto", and may hold only such settings.
        """
        values = asdict(self)
        return model_config.write(path, {n: v for n, v in values.items() if v != getattr(FastMem(), n)}, about)

    @classmethod
    def paper(cls, **changes: Any) -> FastMem:
        """The reference recipe, constant by constant, hidden ones included; `changes` override."""
        recipe = {
            "steps": 10,
            "learning_rate": 1e-5,
            "kl_weight": 0.1,
            "adapter": "full",
            "template": "assistant",
            "target_kl": None,
            "relevance": None,
            "conflicts": None,
            "shortlist": None,
            "max_kl": 10.0,
            "fallback": False,
            "weight_decay": 0.01,
            "clip_norm": 1.0,
        }
        return cls(**{**recipe, **changes})

    def check(self, backbone: Backbone) -> None:
        """Refuse a model this cannot work on, before anything is computed.

        Raises:
            UnsupportedModelError: the last FFN has nothing to adapt, or is quantised where its weights are needed.
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


def _or(others: Sequence[str | None]) -> str:
    """What else than a number a setting may be, for its error."""
    return "".join(f" or {json.dumps(o)}" if o else ", or None for no end" for o in others)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
