"""`Rtd` against the naive version in tests/reference/rtd.py, in mixed batches, for several architectures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from memograft import Datastore, Engine, FastMem, Request, Rtd, Sampling
from memograft.model.backbone import Backbone
from reference.rtd import mixture, votes
from test_engine import FACTS, ask, prompt_ids

EXAMPLES = [
    ("Who wrote it?", "A sailor from Bergen."),
    ("What is the capital?", "The capital of France is Paris."),
    (["The book is blue."], "Which colour?", "It is blue and green."),
    ([{"role": "system", "content": "Say."}, {"role": "user", "content": "Numbers?"}], "1, 2, 3, 45"),
]
STRONG = FastMem(steps=2, learning_rate=0.05, rank=4, target_kl=None, max_kl=1e9, fallback=False, relevance=None)
FAMILIES = ["llama", "gpt2", "opt", "gemma2", "falcon", "mixtral"]


def state_and_logits(engine: Engine, ids: list[int], place: str) -> tuple[np.ndarray, np.ndarray]:
    """State and logits of the last position, from a plain pass with a hook of this test."""
    parts, seen = Backbone.of(engine.model), []
    module = parts.ffn[0] if place == "ffn_input" else parts.head
    handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        logits = engine.model(torch.tensor([ids])).logits[0, -1]
    handle.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])[-1].numpy(), logits.numpy()


@pytest.mark.parametrize("place", ["ffn_input", "head_input"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_has_the_probability_of_the_formula(make_engine: Any, family: str, place: Any) -> None:
    engine = make_engine(family)
    with Datastore.build(engine, EXAMPLES, place=place, progress=False) as store:
        entries = store._files.entries
        t = store.header.calibration["temperature"]["squared"]
        request = ask("Who said so?")
        h, logits = state_and_logits(engine, prompt_ids(engine, request), place)
        for settings in (
            Rtd(store, k=5, gate=None),
            Rtd(store, k=7, heads=4, weight=0.8, temperature=3.0, gate=None),
            Rtd(store, k=3, heads=2, distance="plain", temperature=0.5, gate=None),
            Rtd(store, k=1000, weight=1.0, gate=None),
        ):
            r = votes(
                h,
                entries.keys,
                entries.values.tolist(),
                k=settings.k,
                t=t if settings.temperature == "auto" else float(settings.temperature),
                heads=settings.heads,
                squared=settings.distance == "squared",
            )
            expected = mixture(r, logits, settings.weight)
            steered, _ = settings(torch.from_numpy(h)[None], torch.from_numpy(logits)[None])
            assert np.abs(steered[0].double().exp().numpy() - expected).max() < 1e-5
            logp = engine.next_token_logprobs(replace(request, processors=[settings]))
            # The engine's state differs by rounding, which the root of a distance near 0 amplifies.
            assert np.abs(logp.double().exp().numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
def test_a_row_with_a_memory(make_engine: Any, family: str) -> None:
    """Memories do not change the input of the last FFN: r is that of the plain row, p_LM that of the memorized row."""
    engine = make_engine(family)
    request = ask(documents=FACTS, memory=replace(STRONG, gate="support", contrast=0.5))
    with Datastore.build(engine, EXAMPLES, progress=False) as store:
        entries, settings = store._files.entries, Rtd(store, k=6, gate=None, weight=0.4, temperature=5.0)
        h, _ = state_and_logits(engine, prompt_ids(engine, request), "ffn_input")
        r = votes(h, entries.keys, entries.values.tolist(), k=6, t=5.0)
        memorized = engine.next_token_logprobs(request)
        expected = mixture(r, memorized.numpy(), 0.4)
        logp = engine.next_token_logprobs(replace(request, processors=[settings]))
        assert np.abs(logp.double().exp().numpy() - expected).max() < 1e-5


def mixed(first: Datastore, second: Datastore) -> list[Request]:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    return [
        ask("Who?", processors=[Rtd(first, weight=0.9)]),
        ask("What is the capital?", documents=FACTS[:1]),
        ask("Which colour is it, please?", processors=[Rtd(second, weight=0.5, heads=4, gate=None)], logprobs=2),
        ask("Who wrote it?", documents=FACTS, memory=STRONG, processors=[Rtd(first, gate=None, weight=0.7)]),
        ask(
            "Who wrote it?",
            documents=FACTS,
            memory=replace(STRONG, gate="support"),
            processors=[Rtd(second, gate=None)],
        ),
        ask("Say.", sampling=Sampling(9, temperature=1.0, seed=3), processors=[Rtd(first, weight=0.9)]),
        ask("Numbers?", json_schema=schema, n=30, processors=[Rtd(second, weight=1.0, gate=None)]),
        ask("Numbers?", n=3, memory=STRONG, documents=FACTS[2:]),
    ]


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2", "gpt_neox"])
def test_a_row_does_not_depend_on_its_neighbours(make_engine: Any, family: str) -> None:
    engine = make_engine(family)
    with (
        Datastore.build(engine, EXAMPLES[:2], progress=False) as first,
        Datastore.build(engine, EXAMPLES[2:], place="head_input", progress=False) as second,
    ):
        requests = mixed(first, second)
        together, alone = engine.answer_batch(requests), [engine.answer(request) for request in requests]
        assert [a.token_ids for a in together] == [a.token_ids for a in alone]
        for a, b in zip(together, alone, strict=True):
            assert [t.entries and t.entries[0].source.id for t in a.references] == [
                t.entries and t.entries[0].source.id for t in b.references
            ]
            assert [t.probability for t in a.references] == pytest.approx(
                [t.probability for t in b.references], abs=1e-4
            )
        steered = [len(a.token_ids) if r.processors else 0 for a, r in zip(together, requests, strict=True)]
        assert [len(a.references) for a in together] == steered


def test_the_references_account_for_the_probability(engine: Engine) -> None:
    """The entries' contributions and the model's own probability add up to the token's probability."""
    with Datastore.build(engine, EXAMPLES, progress=False) as store:
        settings = Rtd(store, weight=0.6, gate=None, k=8)
        answer = engine.answer(ask("Who wrote it?", n=6, processors=[settings], logprobs=0))
        assert answer.references
        assert [t.token_id for t in answer.references] == list(answer.token_ids)
        prompt = prompt_ids(engine, ask("Who wrote it?"))
        for place, (said, token) in enumerate(zip(answer.logprobs, answer.references, strict=True)):
            _, logits = state_and_logits(engine, [*prompt, *answer.token_ids[:place]], "ffn_input")
            p_lm = float(torch.tensor(logits).softmax(-1)[said.token_id])
            assert np.exp(said.logprob) == pytest.approx(0.4 * p_lm + token.probability, abs=1e-4)
            for entry in token.entries:
                assert entry.source.text in [e[-1] for e in EXAMPLES]
        shares = answer.sources
        assert sum(s.probability for s in shares) == pytest.approx(sum(t.probability for t in answer.references))
        assert [s.probability for s in shares] == sorted((s.probability for s in shares), reverse=True)
