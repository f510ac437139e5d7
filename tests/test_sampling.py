"""Penalties, biases and min-p of single requests in a batch, against transformers; several answers to a request."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor
from transformers.generation import MinPLogitsWarper

from families import build
from memograft import Engine, FastMem, Sampling
from memograft.errors import SettingsError
from test_decode import draw
from test_engine import FACTS, ask, generated, padded_and_penalised

FAMILIES = ["llama", "gpt2"]
MEMORY = FastMem(steps=2, learning_rate=0.05, rank=4, target_kl=None, max_kl=1e9, fallback=False, relevance=None)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("penalty", [1.3, 2, 0.7])
def test_a_repetition_penalty_is_that_of_generate(make_engine: Any, family: str, penalty: float) -> None:
    engine = make_engine(family)
    request = ask(documents=FACTS, sampling=Sampling(20, repetition_penalty=penalty))
    answer = engine.answer(request)
    assert answer.token_ids == generated(engine, request, repetition_penalty=float(penalty))
    assert answer.token_ids != engine.answer(ask(documents=FACTS, n=20)).token_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_a_logit_bias_is_the_sequence_bias_of_generate_and_comes_before_the_penalty(
    make_engine: Any, family: str
) -> None:
    engine = make_engine(family)
    plain = engine.answer(ask(documents=FACTS, n=12)).token_ids
    bias = {plain[0]: -100.0, 150: 0.05, 151: 0.1}
    request = ask(documents=FACTS, sampling=Sampling(12, logit_bias=bias, repetition_penalty=1.5))
    said = engine.answer(request).token_ids
    as_sequences = {(id,): value for id, value in bias.items()}
    assert said == generated(engine, request, sequence_bias=as_sequences, repetition_penalty=1.5)
    assert plain[0] not in said


def test_a_bias_can_force_a_token(engine: Engine) -> None:
    assert set(engine.answer(ask(sampling=Sampling(5, logit_bias={"123": 100}))).token_ids) == {123}  # type: ignore[dict-item]


@pytest.mark.parametrize("min_p", [0.05, 0.3, 0.9, 1.0])
def test_min_p_keeps_what_transformers_keeps(min_p: float) -> None:
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0, -1.0])
    kept = MinPLogitsWarper(min_p)(None, logits[None])[0].isfinite().nonzero().flatten().tolist()
    drawn = draw(Sampling(temperature=1.0, min_p=min_p, seed=1), logits, 20_000)
    assert drawn.nonzero().flatten().tolist() == kept


@pytest.mark.parametrize("family", FAMILIES)
def test_min_p_of_one_is_greedy(make_engine: Any, family: str) -> None:
    engine = make_engine(family)
    request = ask(documents=FACTS, sampling=Sampling(12, temperature=1.5, min_p=1.0, seed=5))
    assert engine.answer(request).token_ids == engine.answer(ask(documents=FACTS, n=12)).token_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_all_kinds_equals_single_runs_and_streams(make_engine: Any, family: str) -> None:
    engine = make_engine(family)
    requests = [
        ask(documents=FACTS, n=12),
        ask("Why?", sampling=Sampling(15, repetition_penalty=1.4)),
        ask("Which?", documents=FACTS[:1], memory=MEMORY, sampling=Sampling(9, repetition_penalty=1.2)),
        ask("Say it.", sampling=Sampling(12, temperature=1.0, min_p=0.2, seed=4, repetition_penalty=1.1)),
        ask("Numbers?", documents=FACTS, sampling=Sampling(8, logit_bias={140: 3.0})),
    ]
    alone = [engine.answer(request) for request in requests]
    assert [a.token_ids for a in engine.answer_batch(requests)] == [a.token_ids for a in alone]
    for request, answer in zip(requests, alone, strict=True):
        assert "".join(engine.stream(request)) == answer.text


class TestOfAModelWithAPenaltyOfItsOwn:
    @pytest.fixture
    def penalised(self, tokenizer: Any) -> Any:
        with Engine(padded_and_penalised(repetition_penalty=1.6), tokenizer) as engine:
            yield engine

    def test_a_requests_own_replaces_it(self, penalised: Engine) -> None:
        requests = [ask(documents=FACTS, n=20)]
        requests += [ask("Why?", sampling=Sampling(20, repetition_penalty=p)) for p in (1.6, 1.2, 1.0)]
        said = [a.token_ids for a in penalised.answer_batch(requests)]
        assert said[0] == generated(penalised, requests[0])
        assert said[1] == generated(penalised, requests[1])  # applied only once
        assert said[2] == generated(penalised, requests[2], repetition_penalty=1.2)
        assert said[3] == generated(penalised, requests[3], repetition_penalty=1.0)
        assert said[1] != said[3]

    def test_it_stays_in_the_models_settings(self, penalised: Engine) -> None:
        penalised.answer(ask(sampling=Sampling(3, repetition_penalty=1.2)))
        assert penalised.model.generation_config.repetition_penalty == 1.6


def test_logprobs_are_of_the_penalised_distribution(engine: Engine) -> None:
    plain = engine.answer(ask(n=1, logprobs=0))
    banned = engine.answer(ask(sampling=Sampling(1, logit_bias={plain.token_ids[0]: -50}), logprobs=0))
    assert banned.token_ids != plain.token_ids
    ids = torch.tensor([plain.prompt_ids])
    with torch.no_grad():
        logits = engine.model(ids).logits[0, -1].float()
    logits[plain.token_ids[0]] -= 50
    assert banned.logprobs[0].logprob == pytest.approx(float(logits.log_softmax(-1).max()), abs=1e-4)


def test_a_token_that_the_model_lacks_is_refused(engine: Engine) -> None:
    size = engine.model.config.vocab_size
    engine.answer(ask(sampling=Sampling(1, logit_bias={size - 1: 1})))
    with pytest.raises(SettingsError, match=rf"token ids below {size}, the size of the model's vocabulary, got {size}"):
        engine.answer(ask(sampling=Sampling(1, logit_bias={size: 1})))


class TestCopies:
    def test_answers_to_one_request_differ_and_can_be_repeated(self, engine: Engine, trained: list[int]) -> None:
        request = ask(documents=FACTS, memory=MEMORY, sampling=Sampling(12, temperature=1.5, seed=7))
        first, again = ([a.token_ids for a in engine.answer_batch(request.copies(4))] for _ in range(2))
        assert first == again
        assert len(set(first)) == 4
        assert first[0] == engine.answer(request).token_ids
        assert trained == [1, 1, 1]  # one memory per batch of four

    def test_neighbouring_seeds_share_no_answer(self) -> None:
        seeds = [c.sampling.seed for seed in range(20) for c in ask(sampling=Sampling(1, seed=seed)).copies(20)]
        assert len(set(seeds)) == 400

    def test_without_a_seed_each_draws_its_own(self, engine: Engine) -> None:
        copies = ask(sampling=Sampling(12, temperature=1.5)).copies(3)
        assert [c.sampling.seed for c in copies] == [None] * 3
        assert len({a.token_ids for a in engine.answer_batch(copies)}) == 3

    @pytest.mark.parametrize("n", [0, -1, 1.5, True, "2"])
    def test_a_number_that_is_none(self, n: Any) -> None:
        with pytest.raises(SettingsError, match="`n` must be a whole number of at least 1, got"):
            ask().copies(n)


def test_a_penalty_sees_the_prompt_behind_a_kept_memory_too(tokenizer: Any) -> None:
    with Engine(build("llama", seed=4), tokenizer) as engine:
        handle = engine.memorize(FACTS, MEMORY)
        sampling = Sampling(15, repetition_penalty=1.5)
        kept = engine.answer(ask(memory=handle, sampling=sampling))
        fresh = engine.answer(ask(documents=FACTS, memory=handle, sampling=sampling))
    assert kept.usage.cached_tokens
    assert kept.token_ids == fresh.token_ids


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("presence", "frequency"), [(2.0, 0.0), (0.0, 2.0), (0.7, 1.5), (-2.0, -1.0)])
def test_presence_and_frequency_penalties_count_the_answers_tokens(
    make_engine: Any, family: str, presence: float, frequency: float
) -> None:
    """OpenAI's formula, over the answer and not the prompt, with counts made by hand."""
    engine = make_engine(family)
    sampling = Sampling(24, presence_penalty=presence, frequency_penalty=frequency)

    class ByHand(LogitsProcessor):
        start: int | None = None

        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.start = self.start or ids.shape[1]
            scores = scores.clone()
            for token, count in Counter(ids[0, self.start :].tolist()).items():
                scores[0, token] -= count * frequency + presence
            return scores

    expected = engine.answer(ask(documents=FACTS, sampling=Sampling(24), processors=[ByHand()])).token_ids
    batch = [ask(documents=FACTS, sampling=sampling), ask("Another?", n=24)]
    said, other = engine.answer_batch(batch)
    assert said.token_ids == expected
    assert said.token_ids != engine.answer(ask(documents=FACTS, n=24)).token_ids
    assert other.token_ids == engine.answer(batch[1]).token_ids


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", True, None])
def test_penalties_are_checked(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"`{name}` must be a finite number"):
        Sampling(**{name: value})
