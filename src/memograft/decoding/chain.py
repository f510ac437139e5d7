"""The logits processors of one row: the model's generation settings, the request's own, and sampling.

Sampling uses transformers' warpers and then the Gumbel-max trick with the row's own generator, so a row's tokens do not
depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor
from transformers.generation import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from memograft.decoding.processor import Processor
from memograft.decoding.row import Row
from memograft.decoding.sampling import Sampling

__all__ = ["Chain", "sampler"]

_GREEDY = 1e-6  # lower temperatures would overflow


class Chain:
    """Applies a row's processors, and records its log-probabilities.

    Args:
        row: the row.
        prompt: its tokens (T,).
        config: the model's generation settings. Of these, sampling, beams, time limits and `guidance_scale` (use the
            processor `Cad`) are not used.
        eos: tokens that end an answer.
    """

    def __init__(self, row: Row, prompt: Tensor, config: GenerationConfig, eos: list[int]) -> None:
        self._row, self._ids = row, prompt[None]
        self._shifts = [*_of_model(config, row, prompt[None], eos), *_shifts(row.sampling, config, len(prompt))]
        self._processors = [*row.processors, *sampler(row.sampling)]

    @property
    def needed(self) -> bool:
        """Whether it does anything."""
        return bool(self._shifts or self._processors) or self._row.logprobs is not None

    @property
    def greedy(self) -> bool:
        """Whether the row's token is the argmax of the logits of any pass, whatever its earlier tokens are."""
        row = self._row
        return not (self.needed or row.ruled or any(own is not None for own in (row.batch, row.cad, row.dola)))

    def __call__(self, logits: Tensor) -> Tensor:
        """(V,) -> (V,)."""
        own = logits[None]
        for shift in self._shifts:
            own = shift(self._ids, own)
        likely = None if self._row.logprobs is None else own[0].float().log_softmax(-1)
        for processor in self._processors:
            own = processor(self._ids, own)
        if likely is not None:
            top = likely.topk(min(self._row.logprobs or 0, len(likely)))
            self._row.chances.append((likely[own[0].argmax()], top.indices, top.values))
        return own[0]

    def take(self, token: Tensor) -> None:
        """Append the chosen token () to the row's ids."""
        if self.needed:
            self._ids = torch.cat([self._ids, token.reshape(1, 1)], 1)


def _of_model(config: GenerationConfig, row: Row, prompt: Tensor, eos: list[int]) -> list[Processor]:
    """The processors that `generate` makes from the model's settings, in its order, but for the repetition penalty."""
    c, length, ends = config, prompt.shape[1], torch.tensor(eos, device=prompt.device)
    many = {"eos_token_id": ends, "device": str(prompt.device)}
    begin = length if length > 1 or c.forced_bos_token_id is None else length + 1
    limit = length + row.max_new_tokens
    chain: list[Processor | None] = [
        SequenceBiasLogitsProcessor(c.sequence_bias) if c.sequence_bias is not None else None,
        EncoderRepetitionPenaltyLogitsProcessor(c.encoder_repetition_penalty, prompt)
        if (c.encoder_repetition_penalty or 1.0) != 1.0
        else None,
        NoRepeatNGramLogitsProcessor(c.no_repeat_ngram_size) if (c.no_repeat_ngram_size or 0) > 0 else None,
        EncoderNoRepeatNGramLogitsProcessor(c.encoder_no_repeat_ngram_size, prompt)
        if (c.encoder_no_repeat_ngram_size or 0) > 0
        else None,
        NoBadWordsLogitsProcessor(c.bad_words_ids, ends) if c.bad_words_ids is not None else None,
        MinLengthLogitsProcessor(c.min_length, **many) if eos and (c.min_length or 0) > 0 else None,
        MinNewTokensLengthLogitsProcessor(length, c.min_new_tokens, **many)
        if eos and (c.min_new_tokens or 0) > 0
        else None,
        ForcedBOSTokenLogitsProcessor(c.forced_bos_token_id) if c.forced_bos_token_id is not None else None,
        ForcedEOSTokenLogitsProcessor(limit, c.forced_eos_token_id, str(prompt.device))
        if c.forced_eos_token_id is not None
        else None,
        InfNanRemoveLogitsProcessor() if c.remove_invalid_values else None,
        ExponentialDecayLengthPenalty(c.exponential_decay_length_penalty, ends, length)
        if c.exponential_decay_length_penalty is not None
        else None,
        SuppressTokensLogitsProcessor(c.suppress_tokens, str(prompt.device)) if c.suppress_tokens is not None else None,
        SuppressTokensAtBeginLogitsProcessor(c.begin_suppress_tokens, begin, str(prompt.device))
        if c.begin_suppress_tokens is not None
        else None,
    ]
    return [processor for processor in chain if processor is not None]


def _shifts(sampling: Sampling, config: GenerationConfig, length: int) -> list[Processor]:
    """Processors for a row's logit bias, its penalties, and its repetition penalty, else the model's.

    `length` is the prompt's.
    """
    own = sampling.repetition_penalty if sampling.repetition_penalty is not None else config.repetition_penalty
    chain: list[Processor] = [_Bias(sampling.logit_bias)] if sampling.logit_bias else []
    if sampling.presence_penalty or sampling.frequency_penalty:
        chain.append(_Penalties(sampling.presence_penalty, sampling.frequency_penalty, length))
    if own is not None and own != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(float(own)))
    return chain


class _Bias(LogitsProcessor):  # type: ignore[misc]
    """Adds constants to the logits of some tokens."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._ids, self._values = torch.tensor([*bias.keys()]), torch.tensor([*bias.values()])

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_add(1, self._ids.to(scores.device), self._values[None].to(scores.device, scores.dtype))


class _Penalties(LogitsProcessor):  # type: ignore[misc]
    """logit - count * frequency - (count > 0) * presence, with the counts of the tokens after the prompt."""

    def __init__(self, presence: float, frequency: float, start: int) -> None:
        self._presence, self._frequency, self._start = presence, frequency, start

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        said, counts = torch.unique(ids[0, self._start :], return_counts=True)
        penalty = counts * self._frequency + self._presence
        return scores.index_add(1, said, -penalty[None].to(scores.dtype))


def sampler(sampling: Sampling) -> list[Processor]:
    """The processors after which the argmax is a sample; none if the likeliest token is wanted."""
    if sampling.temperature < _GREEDY:
        return []
    chain: list[Processor] = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_k is not None:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        chain.append(MinPLogitsWarper(sampling.min_p))
    return [*chain, Gumbel(sampling.seed)]


class Gumbel(LogitsProcessor):  # type: ignore[misc]
    """Adds Gumbel noise to log-probabilities; the argmax is then a sample of the distribution (Gumbel, 1954)."""

    def __init__(self, seed: int | None) -> None:
        self._seed = torch.Generator().seed() if seed is None else seed
        self._generator: torch.Generator | None = None

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        if self._generator is None:  # on the device of the logits, so that nothing waits for a copy of the noise
            self._generator = torch.Generator(scores.device).manual_seed(self._seed)
        uniform = torch.rand(scores.shape, generator=self._generator, dtype=torch.float64, device=scores.device)
        noise = -(-uniform.clamp_min(1e-300).log()).log()
        return scores + noise.to(scores.dtype)
