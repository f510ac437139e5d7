"""Context-aware decoding with rows of one batch equals two complete forward passes per token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from families import build
from memograft import Cad, Engine, FastMem, Request, Sampling
from memograft.errors import SettingsError
from memograft.model.adapter import applied, stack
from test_support_gate import FACTS, STRONG

ASK, ALPHA = "Where is it?", 6.0  # large, because documents have little effect on a random model
PLAIN = Request(ASK, documents=FACTS, processors=[Cad(ALPHA)], sampling=Sampling(12))


@torch.no_grad()
def naive(engine: Engine, request: Request, alpha: float, memory: Any = None) -> list[int]:
    """Greedy tokens of (1 + alpha) l(documents, question) - alpha l_0(question), with two passes per token."""
    build_prompt = engine._prompts.build
    ids, bare = (list(build_prompt(request.messages, d).ids) for d in (request.documents, ()))
    adapters = stack([memory.adapter if memory else None], engine._backbone)
    tokens: list[int] = []
    while len(tokens) < request.sampling.max_new_tokens:
        with applied(engine._backbone, adapters):
            own = engine.model(torch.tensor([ids + tokens])).logits[0, -1]
            without = engine.model(torch.tensor([bare + tokens])).logits[0, -1]
        tokens.append(int(((1 + alpha) * own - alpha * without).argmax()))
        if tokens[-1] == engine.model.generation_config.eos_token_id:
            return tokens[:-1]
    return tokens


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2", "gpt2", "phi", "qwen2_moe"])
def test_what_is_said_is_the_formula(tokenizer: Any, family: str) -> None:
    """With and without a memory, beside rows without CAD; some of Gemma 2's layers have sliding windows."""
    with Engine(build(family, seed=1), tokenizer) as engine:
        memory = replace(STRONG, gate=None)
        handle = engine.memorize(FACTS, memory)
        others = [Request("Who wrote it?", sampling=Sampling(16)), replace(PLAIN, processors=())]
        memorized, reused = replace(PLAIN, memory=memory), replace(PLAIN, memory=handle)
        answers = engine.answer_batch([others[0], PLAIN, memorized, others[1], reused])
        expected, with_memory = naive(engine, PLAIN, ALPHA), naive(engine, PLAIN, ALPHA, handle)
        assert list(answers[1].token_ids) == expected
        assert [list(answers[n].token_ids) for n in (2, 4)] == [with_memory] * 2
        assert [answers[0].token_ids, answers[3].token_ids] == [engine.answer(r).token_ids for r in others]
        assert expected not in (with_memory, list(answers[3].token_ids)), "it changed nothing: the test shows nothing"


def test_streams_and_samples_alike(engine: Engine) -> None:
    sampled = replace(PLAIN, sampling=Sampling(12, temperature=1.0, seed=3))
    alone = engine.answer(sampled)
    assert "".join(engine.stream(sampled)) == alone.text
    assert engine.answer_batch([PLAIN, sampled, PLAIN])[1].token_ids == alone.token_ids


def test_without_documents_or_alpha_it_changes_nothing(engine: Engine) -> None:
    for request in (replace(PLAIN, documents=()), replace(PLAIN, processors=[Cad(0)])):
        assert engine.answer(request).token_ids == engine.answer(replace(request, processors=())).token_ids


def test_it_pushes_towards_the_page(tiny: Engine) -> None:
    page, question = "The capital of Australia is Lisbon.", "What is the capital of Australia?"

    def surprise(**changes: Any) -> float:
        """Nats per token of the page's answer, from a row that is forced to generate it."""
        return -tiny.choose(question, [page, "Canberra."], [page], **changes).scores[0]

    assert surprise(processors=[Cad()]) < surprise()
    assert "Lisbon" in tiny.answer(question, [page], memory=FastMem(), processors=[Cad()]).text


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), True, "much"])
def test_bad_alphas(alpha: Any) -> None:
    with pytest.raises(
        SettingsError, match=r"`alpha` must be a number that is not negative, got .*; the paper has 0.5"
    ):
        Cad(alpha)


def test_two_of_them_are_refused(engine: Engine) -> None:
    with pytest.raises(
        SettingsError, match=r"`processors` may hold one Cad, got 2 \(alpha \[0.5, 1\]\); keep one of them"
    ):
        engine.answer(replace(PLAIN, processors=[Cad(), Cad(1)]))
