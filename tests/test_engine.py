"""Without a memory, the engine's answers equal those of the model's own `generate`, alone and in mixed batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from families import FAMILIES, ROUTED, build
from memograft import Document, Engine, FastMem, Request, Sampling
from memograft.errors import EmptyPromptError, PromptTooLongError, SettingsError, UnsupportedModelError

FACTS = ["The capital of France is Paris.", "A sailor from Bergen wrote the book in 1932.", "Numbers are 1 and 2."]


def prompt_ids(engine: Engine, request: Request) -> list[int]:
    return list(engine._prompts.build(request.messages, request.documents).ids)


def generated(engine: Engine, request: Request, **options: Any) -> tuple[int, ...]:
    """The tokens of `model.generate` for the same prompt."""
    ids = torch.tensor([prompt_ids(engine, request)])
    options = {"max_new_tokens": request.sampling.max_new_tokens, "do_sample": False} | options
    with torch.no_grad():
        out = engine.model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :].tolist()
    eos = engine.model.generation_config.eos_token_id
    return tuple(out[:-1] if out and out[-1] == eos else out)


def assert_likeliest(engine: Engine, request: Request, token_ids: Sequence[int], tolerance: float) -> None:
    """Each token is the model's first choice, or within rounding of it, relative to the range of the logits."""
    prompt = prompt_ids(engine, request)
    with torch.no_grad():
        logits = engine.model(torch.tensor([[*prompt, *token_ids]])).logits[0, len(prompt) - 1 : -1].float()
    said = logits.gather(1, torch.tensor([token_ids]).T)[:, 0]
    assert ((logits.amax(1) - said) / (logits.amax(1) - logits.amin(1))).max() < tolerance


def ask(question: str = "Who wrote it?", n: int = 10, **options: Any) -> Request:
    return Request(question, **({"sampling": Sampling(n)} | options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_the_models_own_generate(make_engine: Any, family: str, dtype: torch.dtype) -> None:
    engine = make_engine(family, dtype)
    request = ask(documents=FACTS[:2])
    answer = engine.answer(request)
    if dtype == torch.float32:
        assert answer.token_ids == generated(engine, request)
    assert_likeliest(engine, request, answer.token_ids, 1e-4 if dtype == torch.float32 else 0.05)
    assert answer.text == engine.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
    assert answer.usage.prompt_tokens == len(prompt_ids(engine, request))
    assert answer.usage.completion_tokens == len(answer.token_ids)
    assert answer.usage.cached_tokens == 0


def ruled(memory: FastMem) -> FastMem:
    """The same memory with all rules."""
    return replace(memory, gate="support", contrast=0.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_batches_equal_single_runs(make_engine: Any, family: str) -> None:
    """With rows of different lengths, memories, processors and sampling."""
    engine = make_engine(family)
    strong = (
        None
        if family in ROUTED
        else FastMem(steps=2, learning_rate=0.05, rank=4, target_kl=None, max_kl=1e9, fallback=False, relevance=None)
    )
    requests = [
        ask(documents=FACTS),
        ask("Numbers?", documents=FACTS[2:], memory=strong),
        ask("Say something.", sampling=Sampling(7, temperature=0.8, seed=3, top_p=0.9)),
        ask(documents=FACTS[:1], memory=strong and replace(strong, gate="support", rank=3)),
        ask("Which?", sampling=Sampling(9, temperature=0.8, seed=4), documents=FACTS, memory=strong and ruled(strong)),
        ask("Why?", n=3),
    ]
    batch = engine.answer_batch(requests)
    alone = [engine.answer(request) for request in requests]
    assert [a.token_ids for a in batch] == [a.token_ids for a in alone]
    assert [a.finish_reason for a in batch] == [a.finish_reason for a in alone]


def padded_and_penalised(**generation: Any) -> Any:
    model = build("llama", seed=4)
    model.generation_config.update(**generation)
    return model


@pytest.mark.parametrize(
    "generation", [{"repetition_penalty": 1.6}, {"no_repeat_ngram_size": 2}, {"suppress_tokens": list(range(100, 200))}]
)
def test_the_models_generation_settings_hold(tokenizer: Any, generation: dict[str, Any]) -> None:
    """Also in a padded batch, where a penalty must ignore the padding."""
    requests = [ask(n=20, documents=FACTS), ask("Why?", n=20)]
    plain = Engine(build("llama", seed=4), tokenizer)
    engine = Engine(padded_and_penalised(**generation), tokenizer)
    answers = [a.token_ids for a in engine.answer_batch(requests)]
    assert answers == [generated(engine, r) for r in requests]
    assert answers != [a.token_ids for a in plain.answer_batch(requests)]
    plain.close()
    engine.close()


def test_settings_that_would_end_or_fork_rows_behind_our_back_are_ours(tokenizer: Any) -> None:
    model = padded_and_penalised(
        do_sample=True, temperature=0.7, top_k=5, num_return_sequences=3, max_time=1e-9, cache_implementation="static"
    )
    with Engine(model, tokenizer) as engine:
        request = ask(documents=FACTS)
        assert len(engine.answer(request).token_ids) == 10


def test_stop_strings_of_the_generation_config(tokenizer: Any) -> None:
    with Engine(padded_and_penalised(), tokenizer) as engine:
        whole = engine.answer(ask(n=12))
    stop = whole.text[3:5]
    with Engine(padded_and_penalised(stop_strings=[stop]), tokenizer) as engine:
        answer = engine.answer(ask(n=12))
    assert answer.finish_reason == "stop"
    assert answer.usage.completion_tokens < 12
    assert stop in answer.text


def test_a_prompt_too_long_harms_nobody_else(engine: Engine) -> None:
    requests = [ask(), ask(documents=["long " * 300]), ask("Numbers?")]
    first, error, last = engine.answer_batch(requests, return_exceptions=True)
    assert isinstance(error, PromptTooLongError)
    assert error.tokens > error.limit
    assert [first.token_ids, last.token_ids] == [generated(engine, requests[0]), generated(engine, requests[2])]
    with pytest.raises(PromptTooLongError, match=r"tokens, and .* fit"):
        engine.answer_batch(requests)


def test_dropped_documents_are_reported(engine: Engine) -> None:
    answer = engine.answer("Who?", ["short", "long " * 300], overflow="drop", sampling=Sampling(2))
    assert [d.text for d in answer.documents] == ["short"]
    assert [d.text for d in answer.dropped] == ["long " * 300]


def test_the_window_ends_an_answer(make_engine: Any) -> None:
    engine = make_engine(max_length=40)
    request = ask("Who?", n=500)
    answer = engine.answer(request)
    assert answer.finish_reason == "length"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == 40
    both = engine.answer_batch([request, ask("Who wrote the book in the year?", n=500)])
    assert both[0].token_ids == answer.token_ids
    assert both[1].usage.prompt_tokens + both[1].usage.completion_tokens == 40


def test_more_requests_than_a_batch_holds(make_engine: Any) -> None:
    engine = make_engine(max_batch=2)
    requests = [ask(f"{n}?", n=3) for n in range(5)]
    assert [a.token_ids for a in engine.answer_batch(requests)] == [generated(engine, r) for r in requests]
    assert engine.answer_batch([]) == []


def test_conversations(engine: Engine) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "A sailor."},
        {"role": "user", "content": "From where?"},
    ]
    request = Request(messages=messages, documents=FACTS, sampling=Sampling(5))
    assert engine.answer(request).token_ids == generated(engine, request)


def test_timings_and_documents_of_an_answer(engine: Engine) -> None:
    answer = engine.answer("Who?", FACTS[:1], memory=FastMem(steps=2, relevance=None), sampling=Sampling(3))
    assert answer.documents == (Document(FACTS[0]),)
    assert min(answer.timings.prefill, answer.timings.memorize, answer.timings.decode) > 0
    assert answer.memory is not None
    assert answer.memory.steps == 2
    assert answer.memory.documents == (Document(FACTS[0]).id,)


@pytest.mark.parametrize(
    ("documents", "reason"), [([], "no documents"), ([""], "documents of 0 tokens"), (["1"], "documents of 1 tokens")]
)
def test_nothing_to_memorize_is_said(engine: Engine, documents: list[str], reason: str) -> None:
    answer = engine.answer("Who?", documents, memory=FastMem(relevance=None), sampling=Sampling(2))
    assert answer.memory is not None
    assert answer.memory.reason is not None
    assert reason in answer.memory.reason
    assert answer.memory.steps == 0


class TestRefusedBeforeAnythingRuns:
    @pytest.fixture
    def untouched(self, make_engine: Any) -> Any:
        engine = make_engine("mixtral")
        calls: list[int] = []
        hook = engine.model.register_forward_pre_hook(lambda *_: calls.append(1))
        yield engine
        hook.remove()
        assert not calls

    def test_a_memory_that_the_model_cannot_have(self, untouched: Engine) -> None:
        request = ask(documents=FACTS, memory=FastMem())
        for call in (
            untouched.answer,
            lambda r: untouched.answer_batch([ask(), r]),
            lambda r: next(untouched.stream(r)),
        ):
            with pytest.raises(UnsupportedModelError, match="routed experts only; answer with memory=None"):
                call(request)
        with pytest.raises(UnsupportedModelError, match="routed experts"):
            untouched.memorize(FACTS)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"memory": "fastmem"}, SettingsError, "`memory` must be FastMem.*got str"),
            ({"overflow": "no"}, SettingsError, "`overflow` must be"),
            ({"timeout": 0}, SettingsError, "`timeout` must be a positive number"),
            ({"documents": "one string"}, SettingsError, r"write documents=\[\.\.\.\]"),
            ({"question": "  "}, EmptyPromptError, "`question` must be text"),
        ],
    )
    def test_bad_requests(self, untouched: Engine, options: dict[str, Any], error: Any, message: str) -> None:
        with pytest.raises(error, match=message):
            untouched.answer(**({"question": "Who?"} | options))

    def test_a_request_with_further_options(self, untouched: Engine) -> None:
        with pytest.raises(SettingsError, match=r"a Request already holds.*dataclasses\.replace"):
            untouched.answer(ask(), documents=FACTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "`max_batch` must be at least 1"),
        ({"max_length": 1}, "`max_length` must be None or at"),
    ],
)
def test_bad_engine_settings(models: Any, tokenizer: Any, options: dict[str, int], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Engine(models(), tokenizer, **options)
