"""`Engine.next_token_logprobs` and `Engine.choose`, against plain forward passes of the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memograft import Datastore, Engine, FastMem, Request, Rtd, Sampling
from memograft.errors import PromptTooLongError, SettingsError
from test_engine import FACTS, ask, prompt_ids

OPTIONS = ["Paris", "The sailor from Bergen", "1932", "blue"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_the_distribution_of_the_first_token(make_engine: Any, family: str) -> None:
    engine = make_engine(family)
    request = ask(documents=FACTS)
    with torch.no_grad():
        expected = engine.model(torch.tensor([prompt_ids(engine, request)])).logits[0, -1].log_softmax(-1)
    logp = engine.next_token_logprobs(request)
    assert (logp.shape, logp.dtype, logp.is_inference()) == ((320,), torch.float32, False)
    assert torch.allclose(logp, expected, atol=1e-4)


def test_it_is_after_memory_and_processors_and_before_sampling(engine: Engine) -> None:
    memory = FastMem(steps=2, learning_rate=0.05, rank=4, target_kl=None, max_kl=1e9, fallback=False, relevance=None)
    request = ask(documents=FACTS, memory=memory)
    said = engine.answer(Request("Who wrote it?", documents=FACTS, memory=memory, logprobs=5, sampling=Sampling(1)))
    logp = engine.next_token_logprobs(request)
    assert [float(logp[t]) for t, _, _ in said.logprobs[0].top] == pytest.approx(
        [p for _, _, p in said.logprobs[0].top], abs=1e-4
    )
    hot = ask(documents=FACTS, memory=memory, sampling=Sampling(9, temperature=2.0, top_k=2, seed=1))
    assert torch.allclose(engine.next_token_logprobs(hot), logp, atol=1e-5)

    def only_even(_ids: Any, scores: Any) -> Any:
        return scores.index_fill(1, torch.arange(1, 320, 2), -torch.inf)

    even = engine.next_token_logprobs(ask(documents=FACTS, memory=memory, processors=[only_even]))
    assert torch.allclose(even[::2], logp[::2].log_softmax(-1), atol=1e-5)
    assert even[1::2].max() == -torch.inf
    schema = engine.next_token_logprobs(ask(n=40, json_schema={"type": "object", "properties": {}}))
    assert engine.tokenizer.decode([int(schema.argmax())]).startswith("{")


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_options_are_scored_by_the_mean_of_their_tokens(make_engine: Any, family: str) -> None:
    engine = make_engine(family)
    choice = engine.choose("Who wrote it?", OPTIONS, FACTS)
    prompt = prompt_ids(engine, ask(documents=FACTS))
    for option, score in zip(OPTIONS, choice.scores, strict=True):
        ids = engine.encode(option)
        with torch.no_grad():
            logp = engine.model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
        each = [float(logp[len(prompt) - 1 + n, token]) for n, token in enumerate(ids)]
        assert score == pytest.approx(sum(each) / len(each), abs=1e-3)
    assert choice.best == OPTIONS[choice.index]
    assert choice.scores[choice.index] == max(choice.scores)


def test_turns_before_the_question_count(engine: Engine) -> None:
    shots = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In Paris."}]
    choice = engine.choose("Who wrote it?", OPTIONS, messages=shots)
    prompt = prompt_ids(engine, Request(messages=[*shots, {"role": "user", "content": "Who wrote it?"}]))
    ids = engine.encode(OPTIONS[0])
    with torch.no_grad():
        logp = engine.model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
    each = [float(logp[len(prompt) - 1 + n, token]) for n, token in enumerate(ids)]
    assert choice.scores[0] == pytest.approx(sum(each) / len(each), abs=1e-3)


def test_a_datastore_has_its_say_in_each_token(engine: Engine) -> None:
    plain = engine.choose("Who wrote it?", OPTIONS)
    taught = OPTIONS[plain.scores.index(min(plain.scores))]
    with Datastore.build(engine, [("Who wrote it?", taught)], progress=False) as store:
        steered = engine.choose("Who wrote it?", OPTIONS, processors=[Rtd(store, weight=0.5, gate=None)])
    assert (plain.best != taught, steered.best) == (True, taught)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": ["one"]}, "`options` must be at least 2 different answers, got"),
        ({"options": "one"}, "`options` must be at least 2 different answers, got"),
        ({"options": ["a", "a"]}, "`options` must be at least 2 different answers, got"),
        ({"by": "rtd"}, r"got \['by'\]; it compares likelihoods: .* pass processors=\[Rtd\(datastore\)\]"),
        ({"options": ["a", ""]}, "an answer must be text, got ''"),
    ],
)
def test_choices_that_cannot_be(engine: Engine, settings: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        engine.choose("Who?", **({"options": OPTIONS} | settings))


def test_an_option_that_does_not_fit(engine: Engine) -> None:
    with pytest.raises(PromptTooLongError, match=r"an option has .* tokens, and .* fit behind the prompt"):
        engine.choose("Who?", ["a", "word " * 300])
