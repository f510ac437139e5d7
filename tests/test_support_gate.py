"""The support gate against whole forward passes, one per token: the base model's and the memorized one's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from families import build
from memograft import Engine, FastMem, MemoryHandle, Request, Sampling
from memograft.memory.adapter import applied, stack

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz !#$%&()*+ éüßñœ 🙂 0123456789"
FACTS = ["The capital of France is Paris, and the river is the Seine.", LETTERS]
STRONG = FastMem(steps=4, learning_rate=0.05, rank=4, max_kl=1e9, gate="support")


@torch.no_grad()
def naive(
    engine: Engine, handle: MemoryHandle, question: str, n: int, penalty: float = 1.0
) -> tuple[list[int], list[bool]]:
    """Greedy tokens by the rule itself, and where the base model's choice stood."""
    prompt = engine._prompts.build([{"role": "user", "content": question}], handle.documents)
    ids, supported = list(prompt.ids), {prompt.ids[t] for t in prompt.context}
    stood = []
    for _ in range(n):
        base = engine.model(torch.tensor([ids])).logits[0, -1]
        with applied(engine._backbone, stack([handle.adapter], engine._backbone)):
            memorized = engine.model(torch.tensor([ids])).logits[0, -1]
        stood.append(int(base.argmax()) in supported)
        logits = (base if stood[-1] else memorized).clone()
        seen = torch.tensor(sorted(set(ids)))
        logits[seen] = torch.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
        ids.append(int(logits.argmax()))
        if ids[-1] == engine.model.generation_config.eos_token_id:
            return ids[len(prompt.ids) : -1], stood
    return ids[len(prompt.ids) :], stood


@pytest.mark.parametrize("family", ["llama", "opt", "olmo2", "falcon", "gpt2", "phi", "qwen2_moe"])
@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_the_gate_follows_its_rule(tokenizer: Any, family: str, penalty: float) -> None:
    with Engine(build(family, seed=1), tokenizer) as engine:
        engine.model.generation_config.repetition_penalty = penalty
        handle = engine.memorize(FACTS, STRONG)
        assert handle.adapter is not None
        # neighbours: no memory, another memory without a gate
        others = [
            Request("Who wrote it?", sampling=Sampling(16)),
            Request("Why?", documents=FACTS[1:], memory=FastMem(steps=2, rank=2, max_kl=1e9), sampling=Sampling(16)),
        ]
        gated = [
            Request(q, memory=handle, documents=handle.documents, sampling=Sampling(16))
            for q in ("Who?", "Where is it?")
        ]
        fresh = [replace(r, memory=STRONG, documents=FACTS) for r in gated]  # shares its batch with the others
        answers = engine.answer_batch([others[0], fresh[0], others[1], fresh[1], *gated])
        expected = [naive(engine, handle, q, 16, penalty) for q in ("Who?", "Where is it?")]
        assert [list(answers[n].token_ids) for n in (1, 3, 4, 5)] == [tokens for tokens, _ in expected] * 2
        stood = [s for _, each in expected for s in each]
        assert True in stood, "the base model never stood: the test shows nothing"
        assert False in stood, "the memory never spoke: the test shows nothing"
        assert [answers[0].token_ids, answers[2].token_ids] == [engine.answer(r).token_ids for r in others]


def test_a_gate_matters(engine: Engine) -> None:
    def say(memory: FastMem) -> tuple[int, ...]:
        return engine.answer("Who?", FACTS, memory=memory, sampling=Sampling(24)).token_ids

    assert say(STRONG) != say(replace(STRONG, gate=None))
