"""DoLa equals a loop that runs every layer's state through the head, for each row of a mixed batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from families import build
from memograft import Cad, Datastore, Dola, Engine, FastMem, Request, Rtd, Sampling
from memograft.decoding.divergence import jensen_shannon
from memograft.decoding.dola import early_states
from memograft.errors import SettingsError
from memograft.model.adapter import applied, stack
from test_support_gate import FACTS, STRONG

ALL = Request("Where is it?", documents=FACTS, processors=[Dola((0, 1))], sampling=Sampling(10))


@torch.no_grad()
def naive(engine: Engine, request: Request, layers: tuple[int, ...], adapter: Any = None) -> list[int]:
    """Greedy tokens of log p_N - log p_j, with a whole pass for each."""
    model, backbone = engine.model, engine._backbone
    ids, tokens = list(engine._prompts.build(request.messages, request.documents).ids), list[int]()
    while len(tokens) < request.sampling.max_new_tokens:
        with applied(backbone, stack([adapter], backbone)):
            out = model(torch.tensor([ids + tokens]), output_hidden_states=True)
        own = out.logits[0, -1].double().softmax(-1)
        chosen, most = None, -1.0
        for layer in layers:
            early = backbone.finish(backbone.head(out.hidden_states[layer][:, -1:]))[0, 0].double().softmax(-1)
            m = (own + early) / 2
            apart = float((own * (own / m).log()).nansum() + (early * (early / m).log()).nansum()) / 2
            if apart > most:
                chosen, most = early, apart
        assert chosen is not None
        contrasted = torch.where(own >= 0.1 * own.max(), own.log() - chosen.log(), -torch.inf)
        tokens.append(int(contrasted.argmax()))
        if tokens[-1] == model.generation_config.eos_token_id:
            return tokens[:-1]
    return tokens


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2", "gpt2", "phi", "qwen2_moe"])
def test_what_is_said_is_the_formula(tokenizer: Any, family: str) -> None:
    """With and without a memory, static and dynamic, in a mixed batch whose other rows do not notice."""
    with Engine(build(family, seed=1), tokenizer) as engine:
        handle = engine.memorize(FACTS, replace(STRONG, gate=None))
        plain = replace(ALL, processors=())
        static = replace(ALL, processors=[Dola((1,))])
        memorized = replace(ALL, memory=handle)
        answers = engine.answer_batch([ALL, plain, static, memorized, replace(plain, memory=handle)])
        assert list(answers[0].token_ids) == naive(engine, ALL, (0, 1))
        assert list(answers[2].token_ids) == naive(engine, ALL, (1,))
        assert list(answers[3].token_ids) == naive(engine, ALL, (0, 1), handle.adapter)
        assert answers[1].token_ids == engine.answer(plain).token_ids
        assert answers[4].token_ids == engine.answer(replace(plain, memory=handle)).token_ids
        changed, unchanged = engine.next_token_logprobs(ALL), engine.next_token_logprobs(plain)
        assert float((changed - unchanged).abs().max()) > 1, "it changed nothing: the test shows nothing"
        assert not any(m._forward_pre_hooks for m in engine.model.modules())


def test_it_is_combined_with_everything_else(engine: Engine) -> None:
    """Alone and in one batch, streamed and sampled alike."""
    examples = Datastore.build(engine, [("Who wrote it?", "A sailor."), ("Where?", "In Bergen.")], progress=False)
    requests = [
        replace(ALL, processors=[Dola((0, 1)), Cad(0.5)]),
        replace(ALL, processors=[Dola((0, 1)), Rtd(examples, weight=0.5, gate=None)]),
        replace(ALL, memory=replace(STRONG, gate=None, contrast=0.5)),
        replace(ALL, sampling=Sampling(10, temperature=1.0, seed=3, repetition_penalty=1.2), logprobs=2),
    ]
    together = engine.answer_batch(requests)
    assert [engine.answer(request).token_ids for request in requests] == [answer.token_ids for answer in together]
    assert "".join(engine.stream(requests[3])) == together[3].text
    assert together[0].token_ids != engine.answer(ALL).token_ids
    examples.close()


def test_layers_of_a_model(tiny: Engine) -> None:
    """Tiny has tied embeddings, and the first layers of such a model would give back its input."""
    count = tiny.model.config.num_hidden_layers
    assert tiny.model.config.tie_word_embeddings
    assert Dola().candidates(tiny._backbone) == tuple(range(count // 2, count, 2))
    assert Dola("low").candidates(tiny._backbone)[0] in (2, count // 2 - 1)
    with pytest.raises(SettingsError, match=rf"`layers` of Dola must be below {count}, the model's layers, got 99"):
        tiny.answer("Hello!", processors=[Dola((1, 99))])
    with pytest.raises(SettingsError, match="`processors` may hold one Dola, got 2; keep one of them"):
        tiny.answer("Hello!", processors=[Dola(), Dola("low")])
    assert Dola([1, 0]) == Dola((1, 0))  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", ["middle", (), (-1,), (True,), 3, None])
def test_bad_layers(layers: Any) -> None:
    with pytest.raises(SettingsError, match=r'`layers` must be "low", "high" or numbers of layers from 0, got '):
        Dola(layers)


@torch.no_grad()
def test_the_states_are_those_of_the_pass(tiny: Engine) -> None:
    ids = torch.tensor([[5, 6, 7]])
    with early_states(tiny._backbone, [0, 1]) as states:
        out = tiny.model(ids, output_hidden_states=True)
    for layer, state in states.items():
        torch.testing.assert_close(state, out.hidden_states[layer][:, 0])


def test_a_divergence_has_its_bounds() -> None:
    one, other = torch.tensor([0.0, -1e4]), torch.tensor([-1e4, 0.0])
    assert float(jensen_shannon(one, one)) == 0
    assert float(jensen_shannon(one, other)) == pytest.approx(0.6931472)
    assert jensen_shannon(torch.randn(3, 7), torch.randn(3, 7)).shape == (3,)


def test_it_answers_like_the_model_where_that_is_sure(tiny: Engine) -> None:
    page = "The capital of Australia is Lisbon."
    answer = tiny.answer("What is the capital of Australia?", [page], memory=FastMem(), processors=[Dola()])
    assert "Lisbon" in answer.text
