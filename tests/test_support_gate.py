"""Rules against complete forward passes, two per token: the base model's and the memorized one's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from families import build
from memograft import Engine, FastMem, MemoryHandle, Request, Sampling
from memograft.model.adapter import applied, stack

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz !#$%&()*+ éüßñœ 🙂 0123456789"
FACTS = ["The capital of France is Paris, and the river is the Seine.", LETTERS]
STRONG = FastMem(
    steps=4, learning_rate=0.05, rank=4, target_kl=None, max_kl=1e9, fallback=False, relevance=None, gate="support"
)
BOTH = replace(STRONG, contrast=0.5)
CONTRAST = replace(BOTH, gate=None)


@torch.no_grad()
def naive(
    engine: Engine, handle: MemoryHandle, question: str, n: int, penalty: float = 1.0
) -> tuple[list[int], list[bool]]:
    """Greedy tokens by the rules, and whether the base model's choice was kept."""
    prompt = engine._prompts.build([{"role": "user", "content": question}], handle.documents)
    ids, alpha = list(prompt.ids), handle.settings.contrast
    supported = {prompt.ids[t] for t in prompt.context} if handle.settings.gate else set()
    stood = []
    for _ in range(n):
        base = engine.model(torch.tensor([ids])).logits[0, -1]
        with applied(engine._backbone, stack([handle.adapter], engine._backbone)):
            memorized = engine.model(torch.tensor([ids])).logits[0, -1]
        stood.append(int(base.argmax()) in supported)
        logits = base.clone() if stood[-1] else (1 + alpha) * memorized - alpha * base
        seen = torch.tensor(sorted(set(ids)))
        logits[seen] = torch.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
        ids.append(int(logits.argmax()))
        if ids[-1] == engine.model.generation_config.eos_token_id:
            return ids[len(prompt.ids) : -1], stood
    return ids[len(prompt.ids) :], stood


CASES = [
    *(
        (family, penalty, STRONG)
        for family in ("llama", "opt", "olmo2", "falcon", "gpt2", "phi")
        for penalty in (1.0, 1.4)
    ),
    *((family, 1.0, CONTRAST) for family in ("llama", "gemma2", "granite")),
    *((family, 1.4, BOTH) for family in ("opt", "qwen2_moe")),
]


@pytest.mark.parametrize(("family", "penalty", "settings"), CASES)
def test_what_is_said_follows_the_rules(tokenizer: Any, family: str, penalty: float, settings: FastMem) -> None:
    with Engine(build(family, seed=1), tokenizer) as engine:
        engine.model.generation_config.repetition_penalty = penalty
        handle = engine.memorize(FACTS, settings)
        assert handle.adapter is not None
        # other rows: no memory, another memory without a gate
        others = [
            Request("Who wrote it?", sampling=Sampling(16)),
            Request("Why?", documents=FACTS[1:], memory=replace(STRONG, gate=None, rank=2), sampling=Sampling(16)),
        ]
        ruled = [
            Request(q, memory=handle, documents=handle.documents, sampling=Sampling(16))
            for q in ("Who?", "Where is it?")
        ]
        fresh = [replace(r, memory=settings, documents=FACTS) for r in ruled]  # in one batch with the others
        answers = engine.answer_batch([others[0], fresh[0], others[1], fresh[1], *ruled])
        expected = [naive(engine, handle, q, 16, penalty) for q in ("Who?", "Where is it?")]
        assert [list(answers[n].token_ids) for n in (1, 3, 4, 5)] == [tokens for tokens, _ in expected] * 2
        stood = [s for _, each in expected for s in each]
        assert (True in stood) == (settings.gate is not None), "the base model never stood: the test shows nothing"
        assert False in stood, "the memory never spoke: the test shows nothing"
        assert [answers[0].token_ids, answers[2].token_ids] == [engine.answer(r).token_ids for r in others]


def test_rules_matter(engine: Engine) -> None:
    memories = [replace(STRONG, gate=None), STRONG, CONTRAST, BOTH]
    said = [engine.answer("Who?", FACTS, memory=memory, sampling=Sampling(24)).token_ids for memory in memories]
    assert len(set(said)) == 4
