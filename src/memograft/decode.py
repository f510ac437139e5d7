"""Generation over a prefilled cache by transformers' own `generate`, every row with its own adapter, rules and end.

Sampling is transformers' own warpers followed by the Gumbel trick with the row's own generator, so that a row's tokens do
not depend on its neighbours. Knows nothing of documents or of how adapters came about.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria, StopStringCriteria
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from memograft.backbone import Backbone
from memograft.errors import RequestCancelledError, RequestTimeoutError
from memograft.memory.adapter import Adapter, applied, stack
from memograft.prefill import Prefill
from memograft.processors.support import SupportGate
from memograft.request import Sampling

__all__ = ["Row", "decode"]


@dataclass
class Row:
    """One row of a decoding batch: what it is asked to do, and, as it goes on, what came of it.

    Attributes:
        sampling: how its tokens are chosen.
        max_new_tokens: at most this many; already cut to the window.
        adapter: its memory, or None for the base model.
        supported: tokens of its documents if the support gate is on, else None.
        processors: its own logits processors, called with (1, T) and (1, V).
        on_tokens: called with all new tokens so far, after each.
        cancelled: asked after each token.
        deadline: `time.monotonic()` after which it is given up.
        tokens: new tokens, without the one that ended it.
        finish_reason: "" while it runs.
        error: what ended it early.
    """

    sampling: Sampling
    max_new_tokens: int
    adapter: Adapter | None = None
    supported: set[int] | None = None
    processors: Sequence[LogitsProcessor] = ()
    on_tokens: Callable[[Sequence[int]], None] | None = None
    cancelled: Callable[[], bool] = lambda: False
    deadline: float | None = None
    tokens: list[int] = field(default_factory=list)
    finish_reason: Literal["", "stop", "length"] = ""
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether it takes no further tokens."""
        return bool(self.finish_reason) or self.error is not None


def decode(backbone: Backbone, prefill: Prefill, rows: Sequence[Row], tokenizer: Any) -> None:
    """Generate until every row is done; fills in `tokens`, `finish_reason` and `error` of each."""
    config = _config(backbone, tokenizer, max(row.max_new_tokens for row in rows))
    with ExitStack() as scope, torch.inference_mode():
        if any(row.adapter is not None for row in rows):
            scope.enter_context(applied(backbone, stack([row.adapter for row in rows], backbone)))
        processors: list[LogitsProcessor] = []
        if any(row.supported is not None for row in rows):
            seen = scope.enter_context(backbone.watch())
            gated = [row.supported for row in rows]
            processors.append(SupportGate(backbone, seen, gated, _vocabulary(backbone)))
        if any(row.processors or row.sampling.temperature > 0 for row in rows):
            processors.append(_PerRow(rows))
        backbone.model.generate(  # type: ignore[operator]
            input_ids=prefill.ids,
            attention_mask=prefill.mask,
            past_key_values=prefill.kv_cache,
            generation_config=config,
            logits_processor=processors,
            stopping_criteria=[_Ends(rows, config.eos_token_id, tokenizer)],
        )


def _config(backbone: Backbone, tokenizer: Any, max_new_tokens: int) -> GenerationConfig:
    """The model's own generation settings (repetition penalty, suppressed tokens, ...), choosing greedily."""
    config: GenerationConfig = copy.deepcopy(backbone.model.generation_config)  # type: ignore[arg-type,assignment]
    eos = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    pad = config.pad_token_id if config.pad_token_id is not None else tokenizer.pad_token_id
    config.update(
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        num_beams=1,
        max_length=None,
        max_new_tokens=max_new_tokens,
        use_cache=True,
        eos_token_id=eos,
        pad_token_id=pad if pad is not None else (eos[0] if isinstance(eos, list) else eos) or 0,
    )
    return config


def _vocabulary(backbone: Backbone) -> int:
    return int(backbone.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator,union-attr]


class _PerRow(LogitsProcessor):
    """Each row's own processors, then its own sampling; an error in one ends that row and no other."""

    supports_continuous_batching = False  # it knows which row belongs to whom

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = [(n, row, [*row.processors, *_sampler(row.sampling)]) for n, row in enumerate(rows)]
        self._rows = [entry for entry in self._rows if entry[2]]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, T), (B, V) -> (B, V)."""
        scores = scores.clone()
        for n, row, processors in self._rows:
            if row.done:
                continue
            try:
                own = scores[n : n + 1]
                for processor in processors:
                    own = processor(input_ids[n : n + 1], own)
                scores[n] = own[0]
            except Exception as e:
                row.error = e
        return scores


def _sampler(sampling: Sampling) -> list[LogitsProcessor]:
    if sampling.temperature == 0:
        return []
    chain: list[LogitsProcessor] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k is not None:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(TopPLogitsWarper(sampling.top_p))
    return [*chain, _Gumbel(sampling.seed)]


class _Gumbel(LogitsProcessor):
    """The most probable token after adding Gumbel noise is a sample of the distribution (Gumbel, 1954)."""

    def __init__(self, seed: int | None) -> None:
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform = torch.rand(scores.shape, generator=self._generator, dtype=torch.float64)
        noise = -(-uniform.clamp_min(1e-300).log()).log()
        return scores + noise.to(scores.device, scores.dtype)


class _Ends(StoppingCriteria):
    """Collects each row's tokens as they come and says which rows are done."""

    def __init__(self, rows: Sequence[Row], eos: int | list[int] | None, tokenizer: Any) -> None:
        self._rows = rows
        self._eos = set(eos) if isinstance(eos, list) else {eos}
        self._stops = [
            StopStringCriteria(tokenizer, list(row.sampling.stop)) if row.sampling.stop else None for row in rows
        ]

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # type: ignore[override]
        """(B, T) -> (B,) bool."""
        for n, (row, token) in enumerate(zip(self._rows, input_ids[:, -1].tolist(), strict=True)):
            if not row.done:
                self._take(n, row, token, input_ids)
        return torch.tensor([row.done for row in self._rows], device=input_ids.device)

    def _take(self, n: int, row: Row, token: int, input_ids: Tensor) -> None:
        if row.cancelled():
            row.error = RequestCancelledError("the request was cancelled while it was being answered")
            return
        if row.deadline is not None and time.monotonic() > row.deadline:
            row.error = RequestTimeoutError(
                f"the request's `timeout` passed after {len(row.tokens)} tokens; allow more time or fewer `max_new_tokens`"
            )
            return
        if token in self._eos:
            row.finish_reason = "stop"
        else:
            row.tokens.append(token)
            stop = self._stops[n]
            if stop is not None and bool(stop(input_ids[n : n + 1, -len(row.tokens) :], None)[0]):
                row.finish_reason = "stop"
            elif len(row.tokens) >= row.max_new_tokens:
                row.finish_reason = "length"
        if row.on_tokens is not None:
            try:
                row.on_tokens(row.tokens)
            except Exception as e:  # whoever listens has gone wrong; its neighbours have not
                row.error = e
