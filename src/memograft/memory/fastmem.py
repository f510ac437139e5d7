"""FastMem (arXiv 2406.16069): fit the last FFN to the context of one request, staying close to the model as it was.

    L(phi) = mean_t CE(p_phi(. | c_<t), c_t) + beta * mean_t KL(p_0(. | c_<t) || p_phi(. | c_<t))    (paper, section 3)

The loop works on rows that the prefill left behind, for all requests of a batch at once: each has its own weights, its
own loss and its own gradient norm, so the batch gives what each would have got alone. Never sees text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from memograft.backbone import Backbone, has_plain_weight, linear_shape
from memograft.errors import SettingsError, UnsupportedModelError
from memograft.memory.adapter import Adapter, applied, dense_weights, replaced
from memograft.memory.gradients import stand_ins
from memograft.memory.objective import Objective
from memograft.memory.relevance import AUTO
from memograft.memory.report import MemoryReport

__all__ = ["FastMem", "Rows", "memorize"]

_SHRINKS = 4  # tries to come back to the KL aimed at
_SLACK = 0.05  # of it that is close enough


@dataclass(frozen=True)
class FastMem:
    """How a request's documents are memorized. The defaults suit a LoRA; `FastMem.paper()` is the published recipe.

    Attributes:
        steps: optimiser steps (paper: 10). More follow the documents more closely, and move the model further.
        learning_rate: of AdamW (paper: 1e-5 on the full FFN).
        kl_weight: beta, how strongly the model is held where it was (paper: 0.1).
        adapter: "lora" trains low-rank changes, "full" the FFN's weights themselves (paper).
        rank: R of the LoRA; ignored by "full".
        targets: "all" projections of the FFN (paper) or only "down", the one that leads back to D.
        template: where the documents are memorized: "prompt", where they stand (one prefill), or "assistant", alone as
            an assistant turn (paper; a second prefill).
        gate: None, or "support": the base model's choice stands wherever that token occurs in the documents. Ours.
        contrast: alpha, how far answers are pushed from the base model's distribution (paper's "FastMem + CD": 0.5).
        relevance: documents that are less about the question than this are left in the prompt but not memorized; see
            `memograft.memory.relevance`. "auto" is 0.5; None judges nothing and memorizes all (paper), whatever
            `conflicts` says. Ours.
        conflicts: "first": of relevant documents that contradict each other in what is asked, only the highest-ranked
            one is memorized; see `memograft.memory.disagreement`. None memorizes them all (paper). Ours.
        shortlist: candidate tokens a step looks at, the rest of the vocabulary being one bucket; None looks at all
            (paper).
        max_kl: nats per token; a memory that moved the model further is rolled back.
        weight_decay: of AdamW (paper, as it really ran: 0.01).
        clip_norm: largest norm of a gradient (paper, as it really ran: 1.0); None does not clip.
        betas: of AdamW.
        eps: of AdamW.
        seed: of the LoRA's first factor.

    Raises:
        SettingsError: a value that can never work.
    """

    steps: int = 10
    learning_rate: float = 4e-3
    kl_weight: float = 0.1
    target_kl: float | None = None
    adapter: Literal["lora", "full"] = "lora"
    rank: int = 16
    targets: Literal["all", "down"] = "all"
    template: Literal["prompt", "assistant"] = "prompt"
    gate: Literal["support"] | None = None
    contrast: float = 0.0
    relevance: float | Literal["auto"] | None = "auto"
    conflicts: Literal["first"] | None = "first"
    shortlist: int | None = 8192
    max_kl: float = 10.0
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
        for name in ("learning_rate", "max_kl", "eps"):
            value = getattr(self, name)
            if not _is_number(value) or value <= 0:
                raise SettingsError(f"`{name}` must be a positive number, got {value!r}")
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
        if self.shortlist is not None and (not isinstance(self.shortlist, int) or self.shortlist < 2):
            raise SettingsError(f"`shortlist` must be at least 2 tokens, or None for all, got {self.shortlist!r}")
        if len(self.betas) != 2 or not all(_is_number(b) and 0 <= b < 1 for b in self.betas):
            raise SettingsError(f"`betas` must be two numbers of at least 0 and below 1, got {self.betas!r}")
        object.__setattr__(self, "betas", tuple(self.betas))  # settings are keys of dicts, and JSON has lists only

    @property
    def threshold(self) -> float | None:
        """`relevance` as a number, or None."""
        return AUTO if self.relevance == "auto" else self.relevance

    @classmethod
    def paper(cls, **changes: Any) -> FastMem:
        """The reference recipe, constant by constant, hidden ones included; `changes` override."""
        recipe = {
            "steps": 10,
            "learning_rate": 1e-5,
            "kl_weight": 0.1,
            "adapter": "full",
            "template": "assistant",
            "relevance": None,
            "conflicts": None,
            "shortlist": None,
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


@dataclass(frozen=True)
class Rows:
    """What is memorized: where the model predicts context tokens, padded to the longest request.

    Attributes:
        x: last-FFN inputs (B, N, D).
        residual: (B, N, D).
        targets: the context tokens (B, N).
        mask: (B, N) True where a row is real.
    """

    x: Tensor
    residual: Tensor
    targets: Tensor
    mask: Tensor

    def single(self, row: int) -> Rows:
        """The rows of one request, without what pads them."""
        own = self.mask[row]
        return Rows(*(t[row, own][None] for t in (self.x, self.residual, self.targets, self.mask)))


def memorize(
    backbone: Backbone,
    rows: Rows,
    settings: FastMem,
    *,
    cancelled: Callable[[], bool] = lambda: False,
    progress: bool = False,
) -> list[tuple[Adapter | None, MemoryReport]]:
    """Memorize B contexts with the same settings; None where a guard rolled the memory back.

    Raises:
        UnsupportedModelError: see `FastMem.check`.
    """
    settings.check(backbone)
    if settings.adapter == "full" and len(rows.mask) > 1:  # a batch would hold the whole FFN once per row
        singles = (rows.single(n) for n in range(len(rows.mask)))
        return [memorize(backbone, one, settings, cancelled=cancelled, progress=progress)[0] for one in singles]
    started = time.perf_counter()
    names = _targets(backbone, settings)
    objective = Objective(backbone, rows, settings.kl_weight, settings.shortlist)
    weights = _Full(backbone, names) if settings.adapter == "full" else _LoRA(backbone, names, settings, len(rows.mask))
    losses = _fit(weights, objective, settings, len(rows.mask), cancelled, progress)
    with weights.active():
        after, kl = objective.exact()
    seconds = time.perf_counter() - started
    results: list[tuple[Adapter | None, MemoryReport]] = []
    for row, adapter in enumerate(weights.adapters()):
        report = MemoryReport.of(
            before=objective.before[row][rows.mask[row]].tolist(),
            after=after[row][rows.mask[row]].tolist(),
            tokens=rows.targets[row][rows.mask[row]].tolist(),
            kl=float(kl[row]),
            losses=losses[row],
            seconds=seconds,
            settings=asdict(settings),
            max_kl=settings.max_kl,
        )
        results.append((None if report.rolled_back else adapter, report))
    return results


def _fit(
    weights: _LoRA | _Full,
    objective: Objective,
    settings: FastMem,
    rows: int,
    cancelled: Callable[[], bool],
    progress: bool,
) -> list[list[float]]:
    """The loop: AdamW on L(phi), each row until it has moved as far as it may. The loss before each step."""
    optimiser = torch.optim.AdamW(
        weights.leaves, settings.learning_rate, settings.betas, settings.eps, settings.weight_decay
    )
    limit = math.inf if settings.target_kl is None else settings.target_kl
    losses: list[list[float]] = [[] for _ in range(rows)]
    for _ in tqdm(range(settings.steps), desc="memorizing", disable=not progress, leave=False):
        if cancelled():
            break
        with torch.enable_grad(), weights.active():
            loss, kl = objective.loss()  # (B,), (B,)
            gradients = torch.autograd.grad(loss.sum(), weights.leaves)
        there = kl.detach() >= limit
        if bool(there.all()):
            break
        for row in (~there).nonzero().flatten().tolist():
            losses[row].append(float(loss[row].detach()))
        for leaf, gradient in zip(weights.leaves, _clipped(gradients, settings.clip_norm, rows), strict=True):
            leaf.grad = gradient
        with weights.held(there):
            optimiser.step()
    if settings.target_kl is not None:
        _shrink(weights, objective, settings.target_kl)
    return losses


def _shrink(weights: _LoRA | _Full, objective: Objective, limit: float) -> None:
    """Take back what the last step did too much: KL grows about as the square of the change."""
    for _ in range(_SHRINKS):
        with torch.no_grad(), weights.active():
            _, kl = objective.loss()
        if bool((kl <= limit * (1 + _SLACK)).all()):
            return
        weights.scale((limit / kl.clamp_min(limit)).sqrt())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _targets(backbone: Backbone, settings: FastMem) -> list[str]:
    shapes = {name: linear_shape(module) or (0, 0) for name, module in backbone.projections.items()}
    return [n for n, (_, out) in shapes.items() if settings.targets == "all" or out == backbone.width]


def _clipped(gradients: Sequence[Tensor], limit: float | None, rows: int) -> list[Tensor]:
    """Scale each row's gradient, over all leaves, to a norm of at most `limit` (as torch's clip_grad_norm_ does)."""
    if limit is None:
        return list(gradients)
    flat = torch.cat([g.reshape(rows, -1) for g in gradients], dim=1)
    scale = (limit / (flat.norm(dim=1) + 1e-6)).clamp_max(1.0)
    return [g * scale.reshape(-1, *[1] * (g.ndim - 1)) for g in gradients]


class _LoRA:
    """B adapters of rank R, trained side by side; initialised as PEFT does (A random, B zero)."""

    def __init__(self, backbone: Backbone, names: Sequence[str], settings: FastMem, rows: int) -> None:
        self._backbone, self._names = backbone, list(names)
        generator = torch.Generator().manual_seed(settings.seed)
        self._stacked: dict[str, tuple[Tensor, Tensor]] = {}
        for name in names:
            inside, out = linear_shape(backbone.projections[name]) or (0, 0)
            device = next(backbone.projections[name].parameters()).device
            a = torch.empty(settings.rank, inside)
            torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
            b = torch.zeros(rows, out, settings.rank, device=device)
            self._stacked[name] = (a.to(device).expand(rows, -1, -1).clone().requires_grad_(), b.requires_grad_())
        self.leaves = [leaf for pair in self._stacked.values() for leaf in pair]
        # Only what leads back to D has others' changes in its input.
        behind = [
            n
            for n in names
            if len(names) > 1 and (linear_shape(backbone.projections[n]) or (0, 0))[1] == backbone.width
        ]
        self._stand_ins = stand_ins(backbone, behind)

    @contextmanager
    def active(self) -> Iterator[None]:
        with applied(self._backbone, self._stacked, stand_ins=self._stand_ins):
            yield

    @contextmanager
    def held(self, rows: Tensor) -> Iterator[None]:
        """Inside, the adapters of these rows (B,) stay as they are, whatever an optimiser does to the leaves."""
        before = [leaf.detach().clone() for leaf in self.leaves]
        yield
        with torch.no_grad():
            for leaf, old in zip(self.leaves, before, strict=True):
                leaf[rows] = old[rows]

    @torch.no_grad()
    def scale(self, factors: Tensor) -> None:
        """Multiply each adapter's change by its factor (B,)."""
        for _, b in self._stacked.values():
            b *= factors[:, None, None].to(b)

    def adapters(self) -> list[Adapter]:
        rows = len(self.leaves[0])
        return [
            Adapter(
                {n: self._stacked[n][0][row].detach().clone() for n in self._names},
                {n: self._stacked[n][1][row].detach().clone() for n in self._names},
            )
            for row in range(rows)
        ]


class _Full:
    """The FFN's own weights in float32, for one context."""

    def __init__(self, backbone: Backbone, names: Sequence[str]) -> None:
        self._backbone = backbone
        self._base = dense_weights(backbone, names)
        self._weights = {name: w.clone().requires_grad_() for name, w in self._base.items()}
        self.leaves = list(self._weights.values())

    @contextmanager
    def active(self) -> Iterator[None]:
        with replaced(self._backbone, self._weights):
            yield

    @contextmanager
    def held(self, _rows: Tensor) -> Iterator[None]:
        """As for `_LoRA`; the one context is never held, since the loop ends with it."""
        yield

    @torch.no_grad()
    def scale(self, factors: Tensor) -> None:
        """Multiply the change of the weights by the one factor (1,)."""
        for name, weight in self._weights.items():
            weight.lerp_(self._base[name], 1 - float(factors[0]))

    def adapters(self) -> list[Adapter]:
        changes = {name: (w.detach() - self._base[name]) for name, w in self._weights.items()}
        return [Adapter.from_dense(changes, self._backbone.width)]
