"""Behaviour of `Rtd`: what it must not change, what it is for, and its settings."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from memograft import Datastore, Engine, Request, Rtd, Sampling
from memograft.errors import ModelMismatchError, SettingsError
from memograft.evaluation.items import world
from memograft.rtd.formula import agreed
from test_engine import FACTS, ask
from test_invariants import changed, state
from test_rtd_reference import EXAMPLES

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Poland": "Warsaw", "Norway": "Oslo",
    "Sweden": "Stockholm", "Greece": "Athens", "Japan": "Tokyo", "China": "Beijing", "Egypt": "Cairo", "Peru": "Lima",
    "Cuba": "Havana", "Austria": "Vienna", "Hungary": "Budapest", "Portugal": "Lisbon", "Ireland": "Dublin",
    "Finland": "Helsinki", "Denmark": "Copenhagen", "Canada": "Ottawa",
}  # fmt: skip


@pytest.fixture
def store(engine: Engine) -> Iterator[Datastore]:
    with Datastore.build(engine, EXAMPLES, progress=False) as built:
        yield built


def test_no_weight_and_an_empty_datastore_are_the_base_model(engine: Engine, store: Datastore) -> None:
    with Datastore.build(engine, [], progress=False) as empty:
        plain = engine.answer(ask(logprobs=3, documents=FACTS))
        base = engine.next_token_logprobs(ask(documents=FACTS))
        for rtd in (Rtd(store, weight=0, gate=None), Rtd(empty, weight=0.9, gate=None)):
            answer = engine.answer(ask(logprobs=3, documents=FACTS, processors=[rtd]))
            assert (answer.token_ids, answer.logprobs) == (plain.token_ids, plain.logprobs)
            assert not answer.sources
            assert torch.equal(base, engine.next_token_logprobs(ask(documents=FACTS, processors=[rtd])))


def test_the_model_is_left_as_it_was(engine: Engine, store: Datastore) -> None:
    before = state(engine.model)
    first = engine.answer(ask(processors=[Rtd(store, weight=0.8, gate=None)]))
    assert engine.answer(ask(processors=[Rtd(store, weight=0.8, gate=None)])).token_ids == first.token_ids
    assert not changed(before, engine.model)


def test_the_error_of_a_datastore_ends_its_rows_only(engine: Engine, store: Datastore) -> None:
    before = state(engine.model)
    broken = Datastore.build(engine, EXAMPLES[:1], progress=False)
    rtd = Rtd(broken, gate=None)
    broken._indexes[1]._rest = []  # as if its memory map were closed
    good = ask(processors=[Rtd(store, weight=0.8, gate=None)])
    results = engine.answer_batch([ask(processors=[rtd]), good, ask(processors=[rtd]), ask()], return_exceptions=True)
    assert [isinstance(result, IndexError) for result in results] == [True, False, True, False]
    assert results[1].token_ids == engine.answer(good).token_ids  # type: ignore[union-attr]
    assert not changed(before, engine.model)


def test_another_thread_sees_the_base_model(engine: Engine, store: Datastore) -> None:
    ids = torch.tensor([[1, 20, 30, 40]])
    with torch.no_grad():
        expected = engine.model(ids).logits
    found: list[bool] = []

    def look() -> None:
        with torch.no_grad():
            found.append(torch.equal(engine.model(ids).logits, expected))

    def aside(_ids: Any, scores: Any) -> Any:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return scores

    alone = engine.answer(ask(processors=[Rtd(store, weight=0.8, gate=None)]))
    watched = engine.answer(ask(processors=[Rtd(store, weight=0.8, gate=None), aside]))
    assert watched.token_ids == alone.token_ids
    assert found
    assert all(found)


def test_threads_and_streams(engine: Engine, store: Datastore) -> None:
    request = ask(processors=[Rtd(store, weight=0.8, gate=None)])
    expected, found = engine.answer(request), []
    threads = [threading.Thread(target=lambda: found.append(engine.answer(request))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert "".join(engine.stream(request)) == expected.text
    for thread in threads:
        thread.join()
    assert [answer.token_ids for answer in found] == [expected.token_ids] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "`k` must be a whole number of at least 1, got 0"),
        ({"heads": 5}, "`heads` must divide D=32, got 5; 1 compares whole states"),
        ({"temperature": 0}, '`temperature` must be above 0, or "auto", got 0'),
        ({"weight": 1.5}, "`weight` must be between 0 and 1, got 1.5"),
        ({"gate": "on"}, "`gate` must be \"auto\", or None to change every token, got 'on'"),
        ({"distance": "cosine"}, '`distance` must be "squared" or "plain", got \'cosine\''),
    ],
)
def test_settings_are_refused_by_name(store: Datastore, settings: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Rtd(store, **settings)


def test_what_a_request_cannot_have(make_engine: Any, store: Datastore) -> None:
    other = make_engine("gpt2")
    with pytest.raises(ModelMismatchError, match=r"was built with another model \(fingerprint .*; build it with this"):
        other.answer(ask(processors=[Rtd(store)]))
    with pytest.raises(SettingsError, match="`processors` may hold one Rtd, got 2; build one datastore of all"):
        make_engine().answer(ask(processors=[Rtd(store), Rtd(store, weight=0.5)]))


def test_near_entries_that_disagree_are_not_trusted() -> None:
    values = np.array([[[7, 7, 8], [7, 9, 7]]])
    clear, unclear, inf = [1.0, 1.1, 4.0], [1.0, 1.1, 4.0], np.inf
    assert agreed(np.array([[clear, unclear]]), values).tolist() == [True]  # clear in one of two heads
    assert agreed(np.array([[[1.0, 1.0, 1.2], unclear]]), values).tolist() == [False]
    assert agreed(np.array([[[0.0, 0.0, 0.0], [5.0, inf, inf]]]), values).tolist() == [True]
    assert agreed(np.array([[[1.0, 2.0, 3.0]]]), np.array([[[4, 4, 4]]])).tolist() == [True]


@pytest.fixture(scope="module")
def style(tiny: Engine) -> Iterator[Datastore]:
    examples = [(f"What is the capital of {land}?", f"{city}, of course!") for land, city in CAPITALS.items()]
    with Datastore.build(tiny, examples, progress=False) as built:
        yield built


class TestTiny:
    @pytest.mark.parametrize(("split", "weight"), [("tune", 0.3), ("test", 0.9)])
    def test_unrelated_answers_stay_as_they_are(self, tiny: Engine, style: Datastore, split: Any, weight: Any) -> None:
        asked = [i for i in world(split, 5) if "capital" not in i.question]
        plain = [Request(i.question, documents=i.documents, sampling=Sampling(32)) for i in asked]
        steered = [replace(r, processors=[Rtd(style, weight=weight)]) for r in plain]
        tokens = kept = 0
        for a, b in zip(tiny.answer_batch(plain), tiny.answer_batch(steered), strict=True):
            tokens += len(a.token_ids)
            kept += sum(x == y for x, y in zip(a.token_ids, b.token_ids, strict=False))
        assert tokens > 200
        assert kept / tokens >= 0.99

    @pytest.mark.parametrize("count", [1, 2, 20])
    def test_a_small_datastore_speaks_of_its_own_matters_only(self, tiny: Engine, count: int) -> None:
        """Its sources are far apart, which must not make the gate too wide."""
        facts = [
            (f"Name the capital of Mount {name}.", f"The capital of Mount {name} is {name}stad.") for name in CAPITALS
        ][:count]
        others = ["What is the capital of Australia?", "Who wrote Hamlet?", "Hello!", "Write a poem about the sea."]
        plain = [a.text for a in tiny.answer_batch([Request(q, sampling=Sampling(24)) for q in others])]
        with Datastore.build(tiny, facts, progress=False) as store:
            rtd = Rtd(store, weight=0.9)
            steered = [Request(q, sampling=Sampling(24), processors=[rtd]) for q in others]
            assert [a.text for a in tiny.answer_batch(steered)] == plain
            assert tiny.answer(facts[0][0], processors=[rtd]).text == facts[0][1]

    def test_it_says_what_it_was_shown_and_cites_it(self, tiny: Engine, style: Datastore) -> None:
        assert tiny.answer("What is the capital of Japan?").text == "The capital of Japan is Tokyo."
        rtd = Rtd(style, weight=0.9)
        answers = tiny.answer_batch([Request(f"What is the capital of {x}?", processors=[rtd]) for x in CAPITALS])
        right = [a.text == f"{city}, of course!" for a, city in zip(answers, CAPITALS.values(), strict=True)]
        assert np.mean(right) >= 0.9
        cited = [
            a.sources[0].source.prompt == f"What is the capital of {x}?" for a, x in zip(answers, CAPITALS, strict=True)
        ]
        assert np.mean(cited) >= 0.9

    def test_facts_it_never_heard_of_in_any_words(self, tiny: Engine) -> None:
        facts = {"Velmora": "Torstad", "Ardenia": "Kelbrook", "Ostrava Bay": "Minhold", "Quill": "Sandrey"}
        examples = [(f"What is the capital of {x}?", f"The capital of {x} is {y}.") for x, y in facts.items()]
        for form in ("What is the capital of {}?", "Which city is the capital of {}?"):
            asked = [Request(form.format(x), sampling=Sampling(32)) for x in facts]
            before = [y in a.text for a, y in zip(tiny.answer_batch(asked), facts.values(), strict=True)]
            with Datastore.build(tiny, examples, progress=False) as store:
                steered = [replace(r, processors=[Rtd(store, weight=0.9)]) for r in asked]
                after = [y in a.text for a, y in zip(tiny.answer_batch(steered), facts.values(), strict=True)]
            assert (sum(before), sum(after)) == (0, 4), form
