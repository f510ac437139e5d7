"""An error in one request, or a lack of memory, does as little harm as possible and leaves the model unchanged."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from gates import Gate
from memograft import Engine, FastMem
from memograft.errors import SettingsError
from memograft.memory.fastmem import contexts as fastmem
from test_decode import Say
from test_engine import FACTS, ask, generated

MEMORY = FastMem(steps=2, learning_rate=0.05, rank=4, target_kl=None, max_kl=1e9, relevance=None, fallback=False)


@contextmanager
def out_of_memory(engine: Engine, when: Any) -> Iterator[list[tuple[int, int]]]:
    """Passes of the model run out of memory when `when(rows, tokens)`; yields the shapes of all passes."""
    shapes: list[tuple[int, int]] = []

    def hook(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        shapes.append(tuple(kwargs["input_ids"].shape))
        if when(*shapes[-1]):
            raise torch.OutOfMemoryError(f"no room for {shapes[-1]}")

    handle = engine.model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield shapes
    finally:
        handle.remove()


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_a_batch_without_room_is_answered_one_by_one(engine: Engine, stage: str) -> None:
    requests = [ask(documents=FACTS), ask("Why?", memory=MEMORY, documents=FACTS[1:]), ask("Who?", n=3)]
    expected = [engine.answer(r).token_ids for r in requests]
    with out_of_memory(engine, lambda rows, tokens: rows > 1 and (tokens > 1) == (stage == "prefill")) as shapes:
        assert [a.token_ids for a in engine.answer_batch(requests)] == expected
    assert max(rows for rows, _ in shapes) == 3
    assert [a.token_ids for a in engine.answer_batch(requests)] == expected


def test_only_the_request_without_room_fails(engine: Engine) -> None:
    requests = [ask("Who?"), ask(documents=FACTS), ask("Why?")]
    with out_of_memory(engine, lambda _, tokens: tokens > 40):
        first, error, last = engine.answer_batch(requests, return_exceptions=True)
    assert isinstance(error, torch.OutOfMemoryError)
    assert [first.token_ids, last.token_ids] == [generated(engine, requests[0]), generated(engine, requests[2])]


def test_a_stream_goes_on_without_room_for_its_batch(engine: Engine) -> None:
    """From the token at which the room was gone, and no token is computed twice."""
    said = Say(engine, "Colours are red, green and blue.")
    pieces: list[str] = []
    calls = 0

    def count(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return said(ids, scores)

    hold = Gate()
    held = engine._submit([ask(n=1, processors=[hold])])[0]
    with out_of_memory(engine, lambda rows, tokens: rows > 1 and tokens == 1 and len(pieces) > 2) as shapes:
        streamed, other = engine._submit([ask(n=40, processors=[count]), ask(n=30)])
        streamed.on_text = pieces.append
        hold.go.set()
        answer = streamed.future.result(20)
        assert other.future.result(20).token_ids == generated(engine, ask(n=30))
    assert held.future.result(20)
    assert (2, 1) in shapes
    assert (1, 1) in shapes
    assert "".join(pieces) == answer.text == "Colours are red, green and blue."
    assert calls == len(said.script)


def test_an_error_in_a_pass_ends_the_row_that_causes_it(engine: Engine) -> None:
    """A module that cannot process one row, alone or with others."""
    requests = [ask("Who?", n=12), ask(documents=FACTS, n=12), ask("Why?", n=12), ask("Which?", n=12)]
    expected = [generated(engine, request) for request in requests]
    bad = next(token for token in expected[1][1:] if not any(token in expected[n] for n in (0, 2, 3)))

    def hook(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] == 1 and bad in kwargs["input_ids"]:
            raise ZeroDivisionError("in the model")

    handle = engine.model.register_forward_pre_hook(hook, with_kwargs=True)
    results = engine.answer_batch(requests, return_exceptions=True)
    handle.remove()
    assert isinstance(results.pop(1), ZeroDivisionError)
    assert [a.token_ids for a in results] == [expected[n] for n in (0, 2, 3)]


@pytest.mark.parametrize("template", ["prompt", "assistant"])
def test_no_room_to_memorize_costs_the_memory_not_the_answer(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    real = fastmem.memorize

    def tight(backbone: Any, rows: Any, settings: FastMem, **options: Any) -> Any:
        if len(rows.lengths) > 1 or rows.lengths[0] > 30:
            raise torch.OutOfMemoryError("no room to memorize")
        return real(backbone, rows, settings, **options)

    monkeypatch.setattr(fastmem, "memorize", tight)
    memory = FastMem(
        steps=2,
        learning_rate=0.05,
        rank=4,
        target_kl=None,
        max_kl=1e9,
        fallback=False,
        relevance=None,
        template=template,
    )  # type: ignore[arg-type]
    requests = [ask(documents=FACTS, memory=memory), ask(documents=["Numbers are 1, 2."], memory=memory)]
    large, small = engine.answer_batch(requests)
    assert large.memory is not None
    assert small.memory is not None
    assert large.memory.rolled_back
    assert "out of memory while memorizing: no room to memorize" in (large.memory.reason or "")
    assert large.memory.settings["rank"] == 4
    assert large.memory.documents == tuple(d.id for d in large.documents)
    assert large.token_ids == generated(engine, ask(documents=FACTS))
    assert (small.memory.rolled_back, small.memory.steps) == (False, 2)


def test_a_memory_beyond_its_bound_is_rolled_back_and_the_answer_given(engine: Engine) -> None:
    wild = FastMem(steps=3, learning_rate=10.0, target_kl=None, max_kl=0.01, relevance=None)
    answer = engine.answer(ask(documents=FACTS, memory=wild))
    assert answer.memory is not None
    assert answer.memory.rolled_back
    assert answer.token_ids == generated(engine, ask(documents=FACTS))


def test_an_error_while_memorizing_harms_one_request(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fastmem.memorize

    def fails(backbone: Any, rows: Any, settings: FastMem, **options: Any) -> Any:
        if settings.steps == 3:
            raise ZeroDivisionError("while memorizing")
        return real(backbone, rows, settings, **options)

    monkeypatch.setattr(fastmem, "memorize", fails)
    good = ask(documents=FACTS, memory=MEMORY)
    bad = ask(documents=FACTS, memory=FastMem(steps=3, relevance=None))
    expected = engine.answer(good).token_ids
    first, error, last = engine.answer_batch([good, bad, good], return_exceptions=True)
    assert isinstance(error, ZeroDivisionError)
    assert [first.token_ids, last.token_ids] == [expected, expected]
    with pytest.raises(ZeroDivisionError, match="while memorizing"):
        engine.memorize(FACTS, FastMem(steps=3))


def test_giving_up_all_requests_ends_memorizing(engine: Engine) -> None:
    """After the current step, with the model unchanged."""
    before = copy.deepcopy(engine.model.state_dict())
    steps, begun = 0, threading.Event()
    name, module = next(iter(engine._backbone.projections.items()))
    assert name

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1
        begun.set()
        if steps == 20:
            job.cancel()

    hook = module.register_forward_pre_hook(count)
    job = engine._submit([ask(documents=FACTS, memory=FastMem(steps=10_000, relevance=None))])[0]
    assert begun.wait(30)  # an earlier request would join its batch
    engine.answer(ask(n=1))
    hook.remove()
    assert 20 <= steps < 40
    assert all(torch.equal(value, before[key]) for key, value in engine.model.state_dict().items())


def test_what_is_no_processor_is_refused_before_anything_runs(engine: Engine) -> None:
    with pytest.raises(SettingsError, match=r"`processors` may hold .* got 'loud' in place 1; pass an instance"):
        engine.answer(ask(processors=[lambda _, scores: scores, "loud"]))
