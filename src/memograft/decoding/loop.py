"""Generation over a prefilled cache with transformers' `generate`; each row has its own adapter, rules and end.

Sampling uses transformers' warpers and then the Gumbel-max trick with the row's own generator, so a row's tokens do not
depend on the other rows.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, StoppingCriteria
from transformers.generation import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from memograft.decoding.batch_processor import BatchProcessor, BatchProcessors
from memograft.decoding.processor import Processor
from memograft.decoding.rule import Rule
from memograft.decoding.sampling import Sampling
from memograft.errors import RequestCancelledError
from memograft.model.adapter import Adapter, applied, stack
from memograft.model.backbone import Backbone, cache_name
from memograft.model.base_logits import base_logits
from memograft.model.kv import Prefill

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.modeling_outputs import CausalLMOutput

__all__ = ["Row", "decode", "end_tokens"]

_GREEDY = 1e-6  # lower temperatures would overflow


@dataclass
class Row:
    """One row of a decoding batch: its request, and its state and results.

    Attributes:
        sampling: how its tokens are chosen.
        max_new_tokens: limit, already reduced to what fits the window.
        adapter: its memory, or None for the base model.
        rules: how its logits with and without the memory are combined; not used without a memory.
        cad: alpha of context-aware decoding, or None.
        batch: its batch processor, which acts after the rules and `cad`; rows with equal ones share a call.
        processors: its own logits processors, called with (1, T) ids without padding and (1, V).
        on_tokens: called after each token, with all new tokens so far.
        on_end: called with the row when it is done, while other rows may continue.
        given_up: called after each token; True cancels the row.
        logprobs: number of most likely tokens to report for each new token; None reports nothing.
        said: tokens of an earlier attempt, which are repeated first. New tokens are appended, for the next attempt.
        tokens: new tokens, without an end token.
        chances: for each of `tokens`, its log-probability, and those of the most likely tokens by id.
        moved: returns for each new token the entries of its batch processor that contributed; see `BatchProcessors.of`.
        finish_reason: "" while it runs.
        error: what ended it early.
    """

    sampling: Sampling
    max_new_tokens: int
    adapter: Adapter | None = None
    rules: Sequence[Rule] = ()
    cad: float | None = None
    batch: BatchProcessor | None = None
    processors: Sequence[Processor] = ()
    on_tokens: Callable[[Sequence[int]], None] | None = None
    on_end: Callable[[Row], None] = lambda _: None
    given_up: Callable[[], bool] = lambda: False
    logprobs: int | None = None
    said: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    chances: list[tuple[float, dict[int, float]]] = field(default_factory=list)
    moved: Callable[[], list[list[tuple[int, int, float]]]] = list
    finish_reason: Literal["", "stop", "length"] = ""
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return bool(self.finish_reason) or self.error is not None


def decode(backbone: Backbone, prefill: Prefill, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> None:
    """Generate until every row is done, and set `tokens`, `finish_reason` and `error` of each.

    After the rows, `prefill` has an echo for each row with `cad`, in their order: its prompt without documents. An echo
    uses its row's adapter and is given its row's tokens.
    """
    config = _config(backbone, tokenizer, max(row.max_new_tokens for row in rows))
    echoed = [n for n, row in enumerate(rows) if row.cad is not None]
    penalty, config.repetition_penalty = config.repetition_penalty, 1.0  # applied per row below
    per_row = _PerRow(rows, prefill.text, echoed, penalty)
    # generate's own processors also read the padding, so it is replaced by a token that the row has anyway.
    ruled = [n for n, row in enumerate(rows) if row.rules and row.adapter is not None]
    shared = None
    if any(row.batch for row in rows):
        shared = BatchProcessors([*(row.batch for row in rows), *(None for _ in echoed)], len(ruled))
    if shared is not None:
        for n, row in enumerate(rows):
            row.moved = partial(shared.of, n)
    ends = _Ends(rows, config, tokenizer, shared)
    # By default `generate` derives positions from the number of columns.
    placed = {"position_ids": prefill.positions} if any(prefill.shifts) else {}
    first = prefill.ids.gather(1, prefill.text.argmax(1, keepdim=True))
    with torch.inference_mode(), _memories(backbone, rows, ruled, echoed, shared):
        backbone.model.generate(
            input_ids=torch.where(prefill.text.bool(), prefill.ids, first),
            attention_mask=prefill.mask,
            **placed,
            **{cache_name(GenerationMixin.prepare_inputs_for_generation): prefill.kv_cache},
            generation_config=config,
            logits_processor=[per_row] if per_row.needed else [],
            stopping_criteria=[ends],
            tokenizer=tokenizer if config.stop_strings else None,
        )
    ends.deliver()


def end_tokens(backbone: Backbone, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens that end an answer: the model's, or else the tokenizer's; empty if neither has any."""
    config: GenerationConfig = backbone.model.generation_config
    eos = config.eos_token_id
    eos = eos if eos is not None else tokenizer.eos_token_id
    return list(eos) if isinstance(eos, list | tuple) else [] if eos is None else [int(eos)]


def _config(backbone: Backbone, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    """The model's generation settings (suppressed tokens, repeated n-grams, ...) with greedy decoding."""
    config: GenerationConfig = copy.deepcopy(backbone.model.generation_config)
    eos = end_tokens(backbone, tokenizer)
    pad = config.pad_token_id if config.pad_token_id is not None else tokenizer.pad_token_id
    config.update(  # None falls back to the model's settings in generate
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        num_beams=1,
        num_return_sequences=1,
        return_dict_in_generate=False,
        penalty_alpha=0.0,
        max_time=math.inf,
        max_length=None,
        cache_implementation="hybrid",  # the value that generate treats as unset
        max_new_tokens=max_new_tokens,
        use_cache=True,
        eos_token_id=eos or None,
        pad_token_id=pad if pad is not None else (eos or [0])[0],
    )
    return config


@contextmanager
def _memories(
    backbone: Backbone, rows: Sequence[Row], ruled: Sequence[int], echoed: Sequence[int], shared: BatchProcessors | None
) -> Iterator[None]:
    """Inside, in this thread, every row runs through its adapter, and its logits are changed by its rules.

    Rules and then batch processors change the model's output, so that everything later (repetition penalty, the row's
    processors, sampling) sees one distribution.
    """
    adapters, owner = [*(row.adapter for row in rows), *(rows[n].adapter for n in echoed)], threading.get_ident()

    def speak(_module: object, _args: object, output: CausalLMOutput) -> None:
        if threading.get_ident() != owner:
            return
        logits = output.logits[:, -1].to(torch.float32, copy=True)
        for n, base in zip(ruled, seen.logits[:, -1].to(logits.device) if ruled else (), strict=True):
            for rule in () if rows[n].done else rows[n].rules:
                logits[n] = rule(logits[n], base, rows[n].tokens)
        for echo, n in enumerate(echoed, start=len(rows)):
            logits[n] += (rows[n].cad or 0.0) * (logits[n] - logits[echo])  # decoding/cad.py
        if shared is not None:
            for n, error in shared.apply(logits, [row.done for row in rows]).items():
                rows[n].error = error
        output.logits = logits[:, None]

    with ExitStack() as scope:
        if any(adapter is not None for adapter in adapters):
            scope.enter_context(applied(backbone, stack(adapters, backbone), bare=len(ruled)))
        if ruled:
            seen = scope.enter_context(base_logits(backbone, len(adapters), ruled))
        if shared is not None:
            scope.enter_context(shared.caught(backbone))
        if ruled or echoed or shared is not None:
            scope.callback(backbone.model.register_forward_hook(speak).remove)
        yield


class _PerRow(LogitsProcessor):  # type: ignore[misc]
    """Applies each row's bias, penalty, processors and sampling. An error ends only the row in which it occurs.

    `penalty` is the repetition penalty of the model's generation_config, for rows whose sampling has none. Echoes (see
    `decode`) get their rows' scores, so that they get the same tokens.
    """

    supports_continuous_batching = False  # it depends on the order of the rows

    def __init__(
        self, rows: Sequence[Row], mask: Tensor, echoed: Sequence[int] = (), penalty: float | None = None
    ) -> None:
        self._count, self._echoed = len(rows), list(echoed)
        chains = [
            (n, row, _shifts(row.sampling, penalty), [*row.processors, *_sampler(row.sampling)])
            for n, row in enumerate(rows)
        ]
        self._chains = [c for c in chains if c[2] or c[3] or c[1].logprobs is not None or c[1].said]
        self._mask = mask.bool()

    @property
    def needed(self) -> bool:
        """Whether any row needs it."""
        return bool(self._chains or self._echoed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, T), (B, V) -> (B, V)."""
        scores = scores.clone()
        prompts, new = input_ids[:, : self._mask.shape[1]], input_ids[:, self._mask.shape[1] :]
        for n, row, shifts, processors in self._chains:
            if row.done:
                continue
            try:
                ids, own = torch.cat([prompts[n, self._mask[n]], new[n]])[None], scores[n : n + 1]
                for shift in shifts:
                    own = shift(ids, own)
                likely = None if row.logprobs is None else own[0].float().log_softmax(-1)
                for processor in processors:
                    own = processor(ids, own)
                if len(row.tokens) < len(row.said):  # repeat the earlier attempt: rounding may differ now
                    own = torch.full_like(own, -math.inf)
                    own[0, row.said[len(row.tokens)]] = 0.0
                if likely is not None:
                    _note(row, likely, int(own[0].argmax()))
                scores[n] = own[0]
            except Exception as e:
                row.error = e
        scores[self._count :] = scores[self._echoed]
        return scores


def _note(row: Row, logprobs: Tensor, choice: int) -> None:
    """Record the log-probability of the row's next token and of the most likely ones."""
    top = logprobs.topk(min(row.logprobs or 0, len(logprobs)))
    likeliest = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    row.chances.append((float(logprobs[choice]), likeliest))


def _shifts(sampling: Sampling, penalty: float | None) -> list[Processor]:
    """Processors for a row's logit bias and its repetition penalty, in `generate`'s order."""
    own = sampling.repetition_penalty if sampling.repetition_penalty is not None else penalty
    chain: list[Processor] = [_Bias(sampling.logit_bias)] if sampling.logit_bias else []
    if own is not None and own != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(float(own)))
    return chain


class _Bias(LogitsProcessor):  # type: ignore[misc]
    """Adds constants to the logits of some tokens."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._ids, self._values = torch.tensor([*bias.keys()]), torch.tensor([*bias.values()])

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_add(1, self._ids.to(scores.device), self._values[None].to(scores.device, scores.dtype))


def _sampler(sampling: Sampling) -> list[Processor]:
    if sampling.temperature < _GREEDY:
        return []
    chain: list[Processor] = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_k is not None:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        chain.append(MinPLogitsWarper(sampling.min_p))
    return [*chain, _Gumbel(sampling.seed)]


class _Gumbel(LogitsProcessor):  # type: ignore[misc]
    """Adds Gumbel noise to log-probabilities; the argmax is then a sample of the distribution (Gumbel, 1954)."""

    def __init__(self, seed: int | None) -> None:
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        uniform = torch.rand(scores.shape, generator=self._generator, dtype=torch.float64)
        noise = -(-uniform.clamp_min(1e-300).log()).log()
        return scores + noise.to(scores.device, scores.dtype)


class _Ends(StoppingCriteria):  # type: ignore[misc]
    """Collects each row's tokens and determines which rows are done.

    Stop strings are searched for in the decoded text. transformers' own criterion processes the whole vocabulary for
    each request, and misses strings whose characters are split over tokens.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        config: GenerationConfig,
        tokenizer: PreTrainedTokenizerBase,
        shared: BatchProcessors | None = None,
    ) -> None:
        self._rows, self._open, self._tokenizer, self._shared = rows, list(rows), tokenizer, shared
        eos, stops = config.eos_token_id, config.stop_strings or ()
        self._eos = set(eos or ())
        self._echoed = [n for n, row in enumerate(rows) if row.cad is not None]
        self._own_stops = (stops,) if isinstance(stops, str) else tuple(stops)

    def __call__(self, input_ids: Tensor, _scores: object, **_: object) -> Tensor:
        """(B, T) -> (B,) bool."""
        if self._shared is not None:
            self._shared.choose(input_ids[:, -1])
        for row, token in zip(self._rows, input_ids[: len(self._rows), -1].tolist(), strict=True):
            if not row.done:
                self._take(row, token)
        if not all(row.done for row in self._open):
            self.deliver()
        done = [row.done for row in self._rows]
        return torch.tensor(done + [done[n] for n in self._echoed], device=input_ids.device)

    def deliver(self) -> None:
        """Call `on_end` of finished rows. For the last ones this happens only after the hooks are removed."""
        ended = [row for row in self._open if row.done]
        self._open = [row for row in self._open if not row.done]
        for row in ended:
            row.on_end(row)

    def _take(self, row: Row, token: int) -> None:
        if row.given_up():
            row.error = RequestCancelledError("the request was given up while it was being answered")
            return
        if token in self._eos:
            row.finish_reason = "stop"
            del row.chances[len(row.tokens) :]
        else:
            row.tokens.append(token)
            if len(row.said) < len(row.tokens):
                row.said.append(token)
            if self._stops(row):
                row.finish_reason = "stop"
            elif len(row.tokens) >= row.max_new_tokens:
                row.finish_reason = "length"
        if row.on_tokens is not None and not row.finish_reason:
            try:
                row.on_tokens(row.tokens)
            except Exception as e:  # an error in the callback ends only this row
                row.error = e

    def _stops(self, row: Row) -> bool:
        stops = (*row.sampling.stop, *self._own_stops)
        if not stops:
            return False
        # A stop string of n bytes that ends in the last token is within the last n tokens, special tokens not counted.
        tail = row.tokens[-8 - 2 * max(len(s.encode("utf-8", "replace")) for s in stops) :]
        decode = self._tokenizer.decode
        texts = [decode(tail, skip_special_tokens=skip, clean_up_tokenization_spaces=False) for skip in (True, False)]
        return any(stop in text for stop in stops for text in texts)
