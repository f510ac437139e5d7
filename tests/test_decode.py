"""Sampling and stopping: distributions, seeds, stop strings, lengths, processors."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor

from memograft import Engine, FastMem, Request, Sampling
from memograft.decoding.chain import Gumbel, sampler
from memograft.decoding.loop import decode
from memograft.decoding.row import Row
from memograft.model.prefill import prefill
from test_engine import FACTS, ask, generated, prompt_ids

GATED = FastMem(
    steps=3, learning_rate=0.05, rank=4, target_kl=None, max_kl=1e9, fallback=False, relevance=None, gate="support"
)
RULED = [GATED, replace(GATED, gate=None, contrast=0.5)]


def draw(sampling: Sampling, logits: torch.Tensor, n: int) -> torch.Tensor:
    """How often each token is drawn in n draws."""
    scores = logits.expand(n, -1)
    for processor in sampler(sampling):
        scores = processor(None, scores)
    return torch.bincount(scores.argmax(-1), minlength=logits.numel()).double()


def test_sampling_follows_the_distribution() -> None:
    """Pearson's chi-square of 20000 draws from 12 tokens. With 11 degrees of freedom, p is 1 in 2 million beyond 50."""
    logits = torch.linspace(-2, 1.5, 12)
    for temperature in (0.5, 1.0, 1.7):
        counts = draw(Sampling(temperature=temperature, seed=1), logits, 20_000)
        expected = torch.softmax(logits / temperature, -1).double() * 20_000
        assert ((counts - expected) ** 2 / expected).sum() < 50


def test_top_k_and_top_p() -> None:
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0, -1.0])
    assert draw(Sampling(temperature=1.0, top_k=2, seed=1), logits, 3000).nonzero().flatten().tolist() == [0, 1]
    # 0.64, 0.24, 0.09, ...: 0.8 is reached by the second token, 0.6 by the first
    assert draw(Sampling(temperature=1.0, top_p=0.8, seed=1), logits, 3000).nonzero().flatten().tolist() == [0, 1]
    assert draw(Sampling(temperature=1.0, top_p=0.6, seed=1), logits, 300).nonzero().flatten().tolist() == [0]


def test_greedy_needs_no_sampler_and_unseeded_noise_differs() -> None:
    assert sampler(Sampling()) == []
    scores = torch.zeros(1, 50)
    assert not torch.equal(Gumbel(None)(None, scores), Gumbel(None)(None, scores))


@pytest.mark.parametrize("temperature", [1e-7, 1e-38, 5e-324])
def test_next_to_no_temperature_is_greedy(engine: Engine, temperature: float) -> None:
    request = ask(sampling=Sampling(8, temperature=temperature, seed=1))
    assert engine.answer(request).token_ids == engine.answer(ask(n=8)).token_ids


@pytest.mark.parametrize("timeout", [float("inf"), 1e10, 1e300])
def test_a_timeout_of_centuries_is_none(engine: Engine, timeout: float) -> None:
    assert engine.answer(ask(n=3, timeout=timeout)).token_ids
    assert list(engine.stream(ask(n=3, timeout=timeout)))


def test_a_seed_repeats_an_answer_whatever_else_is_in_the_batch(engine: Engine) -> None:
    warm = [ask(sampling=Sampling(12, temperature=1.0, seed=seed)) for seed in range(6)]
    warm += [ask(sampling=Sampling(12, temperature=1.0, seed=6), documents=FACTS, memory=m) for m in RULED]
    batch = [a.token_ids for a in engine.answer_batch([ask(documents=FACTS), *warm])]
    assert batch[1:] == [engine.answer(r).token_ids for r in warm]
    assert len(set(batch)) == 9


def test_without_a_seed_answers_differ(engine: Engine) -> None:
    request = ask(sampling=Sampling(12, temperature=1.0))
    torch.manual_seed(0)
    first = engine.answer(request).token_ids
    torch.manual_seed(0)
    assert engine.answer(request).token_ids != first


def test_the_first_token_follows_the_models_softmax(make_engine: Any) -> None:
    engine = make_engine(max_batch=128)
    request = ask()
    with torch.no_grad():
        logits = engine.model(torch.tensor([prompt_ids(engine, request)])).logits[0, -1]
    n, top = 512, 4
    best = logits.topk(top)
    requests = [ask(sampling=Sampling(1, temperature=2.0, top_k=top, seed=s)) for s in range(n)]
    answers = engine.answer_batch(requests)
    counts = {int(t): 0 for t in best.indices}
    for answer in answers:
        counts[answer.token_ids[0]] += 1  # raises KeyError for a token outside the top k
    expected = torch.softmax(best.values / 2.0, -1) * n
    observed = torch.tensor([counts[int(t)] for t in best.indices])
    assert ((observed - expected) ** 2 / expected).sum() < 30


class TestStopStrings:
    @pytest.fixture
    def whole(self, engine: Engine) -> Any:
        answer = engine.answer(ask(n=24, documents=FACTS))
        assert len(answer.text) > 20
        return answer

    @pytest.mark.parametrize(("start", "length"), [(0, 1), (4, 2), (7, 5), (3, 12)])
    def test_the_text_ends_before_it(self, engine: Engine, whole: Any, start: int, length: int) -> None:
        stop = whole.text[start : start + length]
        answer = engine.answer(ask(documents=FACTS, sampling=Sampling(24, stop=["never said", stop])))
        assert answer.finish_reason == "stop"
        assert answer.text == whole.text[: whole.text.index(stop)]
        assert whole.token_ids[: len(answer.token_ids)] == answer.token_ids
        # no more tokens than needed
        assert stop not in engine.tokenizer.decode(answer.token_ids[:-1])

    def test_a_string_that_is_not_said(self, engine: Engine, whole: Any) -> None:
        answer = engine.answer(ask(documents=FACTS, sampling=Sampling(24, stop="not said")))
        assert (answer.text, answer.finish_reason) == (whole.text, whole.finish_reason)

    @pytest.mark.parametrize("stop", ["é", "。", "🙂", "a🙂b", "ü ß"])
    def test_characters_split_over_tokens(self, engine: Engine, stop: str) -> None:
        said = f"xy {stop} z"
        request = ask(processors=[Say(engine, said)], sampling=Sampling(60, stop=[stop]))
        answer = engine.answer(request)
        assert (answer.text, answer.finish_reason) == ("xy ", "stop")

    def test_one_row_stops_and_the_other_does_not(self, engine: Engine, whole: Any) -> None:
        stop = whole.text[4:6]
        stopped, other = engine.answer_batch(
            [ask(documents=FACTS, sampling=Sampling(24, stop=[stop])), ask(n=24, documents=FACTS)]
        )
        assert stopped.finish_reason == "stop"
        assert other.token_ids == whole.token_ids

    @pytest.mark.parametrize("memory", RULED, ids=["gated", "contrasted"])
    def test_rows_with_rules(self, engine: Engine, whole: Any, memory: FastMem) -> None:
        """Stopped, streamed, and in a batch."""
        said = engine.answer(ask(n=24, documents=FACTS, memory=memory)).text
        stop = said[4:7]
        request = ask(documents=FACTS, memory=memory, sampling=Sampling(24, stop=[stop]))
        stopped, other = engine.answer_batch([request, ask(n=24, documents=FACTS)])
        assert (stopped.text, stopped.finish_reason) == (said[: said.index(stop)], "stop")
        assert other.token_ids == whole.token_ids
        assert "".join(engine.stream(request)) == stopped.text


class Say(LogitsProcessor):
    """Forces the model to generate a text and then end."""

    def __init__(self, engine: Engine, text: str) -> None:
        eos = engine.model.generation_config.eos_token_id
        self.script = [*engine.tokenizer(text, add_special_tokens=False)["input_ids"], eos]
        self.start: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.start = self.start or input_ids.shape[1]
        chosen = torch.full_like(scores, -torch.inf)
        chosen[:, self.script[input_ids.shape[1] - self.start]] = 0.0
        return chosen


def test_the_end_token_ends_an_answer(engine: Engine) -> None:
    answer = engine.answer(ask(n=30, processors=[Say(engine, "Colours are red.")]))
    assert (answer.text, answer.finish_reason) == ("Colours are red.", "stop")
    assert answer.usage.completion_tokens == len(answer.token_ids)
    assert engine.model.generation_config.eos_token_id not in answer.token_ids


def test_processors_see_their_own_row_without_padding(engine: Engine) -> None:
    seen: list[list[int]] = []

    class Look(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            assert input_ids.shape[0] == scores.shape[0] == 1
            seen.append(input_ids[0].tolist())
            return scores

    short, long = ask("Why?", n=3, processors=[Look()]), ask(n=3, documents=FACTS)
    answers = engine.answer_batch([short, long])
    prompt = prompt_ids(engine, short)
    assert seen == [prompt + list(answers[0].token_ids[:n]) for n in range(3)]
    assert answers[0].token_ids == generated(engine, short)


def test_an_error_in_a_processor_ends_its_row_only(engine: Engine) -> None:
    class Fails(LogitsProcessor):
        calls = 0

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls > 2:
                raise ZeroDivisionError("in the processor")
            return scores

    fails, others = Fails(), [ask(documents=FACTS), ask("Why?")]
    results = engine.answer_batch([others[0], ask(processors=[fails]), others[1]], return_exceptions=True)
    assert isinstance(results[1], ZeroDivisionError)
    assert fails.calls == 3, "the batch was tried again"
    assert [results[0].token_ids, results[2].token_ids] == [generated(engine, r) for r in others]
    with pytest.raises(ZeroDivisionError, match="in the processor"):
        engine.answer(ask(processors=[Fails()]))


def test_an_interpreter_exit_in_a_processor_reaches_its_caller(engine: Engine) -> None:
    class Exits(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            raise SystemExit("from the processor")

    with pytest.raises(SystemExit, match="from the processor"):
        engine.answer(ask(processors=[Exits()]))
    assert engine.answer(ask()).token_ids == generated(engine, ask())


def test_usage_of_a_request_without_documents(engine: Engine) -> None:
    request = Request("Who?", sampling=Sampling(4))
    usage = engine.answer(request).usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (
        len(prompt_ids(engine, request)),
        0,
        4,
    )


def test_rules_see_both_distributions_and_the_answer_so_far(engine: Engine) -> None:
    handle = engine.memorize(FACTS, GATED)
    filled = prefill(engine._backbone, [prompt_ids(engine, ask(documents=FACTS))], 0)
    seen: list[list[int]] = []

    def look(logits: torch.Tensor, base: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
        assert logits.shape == base.shape == (engine.model.config.vocab_size,)
        assert logits.dtype == base.dtype == torch.float32
        seen.append(list(tokens))
        return logits

    row, idle = Row(Sampling(), 4, handle.adapter, [look]), Row(Sampling(), 4, None, [look])
    decode(engine._backbone, replace(filled, kv_cache=copy.deepcopy(filled.kv_cache)), [row], engine.tokenizer)
    assert seen == [row.tokens[:n] for n in range(4)]
    decode(engine._backbone, filled, [idle], engine.tokenizer)
    assert len(seen) == 4, "without a memory there is nothing to combine"
