"""The base model's answer replaces a memorized one that loops or does not end, and only such an answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from families import FAMILIES, ROUTED
from memograft import Cad, Datastore, Engine, FastMem, Request, Rtd, Sampling
from memograft.decoding.fallback import base_answer
from memograft.decoding.repetition import repeats
from memograft.decoding.row import Row
from memograft.errors import SettingsError
from memograft.model.adapter import Adapter
from test_engine import FACTS
from test_engine_errors import out_of_memory

STRONG = FastMem(steps=3, learning_rate=0.2, rank=4, target_kl=None, max_kl=1e9, relevance=None)
WORDS = "rinse the pump and then turn the machine off again before water comes out of it".split()
GIVEN = ", so the base model's was given; try a smaller `target_kl`"
LOOP = ["rinse", "the", "pump"] * 5


def asked(engine: Engine, **changes: Any) -> Request:
    """A request whose memorized answer reaches the length limit, while the base model's ends with a stop string."""
    request = Request("Who wrote it?", documents=FACTS, sampling=Sampling(24), **changes)
    memorized = engine.answer(replace(request, memory=replace(STRONG, fallback=False))).text
    text = engine.answer(request).text
    stop = next(text[n : n + 2] for n in range(2, len(text)) if text[n : n + 2] not in memorized)
    return replace(request, sampling=Sampling(24, stop=(stop,)))


@pytest.mark.parametrize("changes", [{}, {"processors": [Cad(0.5)]}, {"logprobs": 1}], ids=["", "cad", "logprobs"])
@pytest.mark.parametrize("family", ["llama", "mistral", "opt", "gpt2"])
def test_what_does_not_end_is_answered_by_the_base_model(make_engine: Any, family: str, changes: Any) -> None:
    """Alone, in a batch and with a kept memory. The answer equals that without a memory."""
    engine = make_engine(family)
    plain = asked(engine, **changes)
    expected, kept = engine.answer(plain), engine.memorize(FACTS, STRONG)
    assert expected.finish_reason == "stop"
    for memory in (STRONG, kept):
        alone = engine.answer(replace(plain, memory=memory))
        other, beside, without = engine.answer_batch(
            [Request("Why?", sampling=Sampling(9)), replace(plain, memory=memory), plain]
        )
        assert [a.token_ids for a in (alone, beside, without)] == [expected.token_ids] * 3
        assert [len(a.logprobs) for a in (alone, beside)] == [len(expected.logprobs)] * 2
        assert other.memory is None
        for answer in (alone, beside):
            assert answer.memory is not None
            assert answer.memory.rolled_back
            assert answer.memory.reason == f"the memorized answer did not end within 24 tokens{GIVEN}"


# Random Gemmas generate only a control token, so no stop string can end their answer.
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - ROUTED - {"gemma2", "gemma3_text"}))
@pytest.mark.parametrize("memory", [STRONG, FastMem(relevance=None)], ids=["strong", "default"])
def test_no_answer_goes_wrong_where_the_base_models_does_not(make_engine: Any, family: str, memory: FastMem) -> None:
    engine = make_engine(family)
    plain = asked(engine)
    requests = [plain, replace(plain, question="Why?", messages=()), replace(plain, documents=FACTS[:1])]
    memorized = [replace(request, memory=memory) for request in requests]
    for without, answer in zip(engine.answer_batch(requests), engine.answer_batch(memorized), strict=True):
        wrong = [a.finish_reason == "length" or repeats(a.text) for a in (without, answer)]
        assert wrong in ([False, False], [True, False], [True, True])


@pytest.mark.parametrize("processors", [[], [lambda _, scores: scores]], ids=["stream", "processors"])
def test_what_cannot_be_taken_back_or_asked_twice_stays(engine: Engine, processors: Any) -> None:
    request = replace(asked(engine), memory=STRONG, processors=processors)
    memorized = engine.answer(replace(request, memory=replace(STRONG, fallback=False)))
    assert memorized.finish_reason == "length"
    if processors:
        assert engine.answer(request).token_ids == memorized.token_ids
    else:
        stream = engine.stream(request)
        assert "".join(stream) == memorized.text
        assert stream.answer is not None
        assert stream.answer.memory is not None
        assert not stream.answer.memory.rolled_back


def test_a_datastore_steers_both(engine: Engine) -> None:
    """References belong to the returned answer."""
    with Datastore.build(engine, [("Who wrote it?", "A sailor from Bergen.")], progress=False) as store:
        plain = asked(engine, processors=[Rtd(store, weight=0.01, gate=None)])
        expected, answer = engine.answer(plain), engine.answer(replace(plain, memory=STRONG))
        assert answer.memory is not None
        assert answer.memory.rolled_back
        assert answer.references
        assert (answer.token_ids, answer.references) == (expected.token_ids, expected.references)


def test_where_both_go_wrong_the_memorized_answer_stays(engine: Engine) -> None:
    request = replace(asked(engine), sampling=Sampling(24), memory=STRONG)
    answer = engine.answer(request)
    assert answer.token_ids == engine.answer(replace(request, memory=replace(STRONG, fallback=False))).token_ids
    assert answer.memory is not None
    assert not answer.memory.rolled_back


def test_without_room_for_both_rows_they_take_turns(engine: Engine) -> None:
    request = replace(asked(engine), memory=STRONG)
    with out_of_memory(engine, lambda rows, tokens: rows > 1 and tokens == 1):
        answer = engine.answer(request)
    with_room = engine.answer(request)
    assert with_room.memory is not None
    assert answer.memory is not None
    assert (answer.token_ids, answer.memory.reason) == (with_room.token_ids, with_room.memory.reason)
    with out_of_memory(engine, lambda rows, tokens: tokens == 1), pytest.raises(torch.OutOfMemoryError):
        engine.answer(request)


def ends(row: list[str], row_ends: str, plain: list[str], plain_ends: str, first: str) -> list[Any]:
    """What is passed on when the two rows have these texts and ends, finished in either order."""
    handed: list[Any] = []
    memorized = Row(Sampling(20), 20, adapter=Adapter({}, {}))
    words = [*row, *plain]
    beside = base_answer(
        memorized, lambda ids: " ".join(words[n] for n in ids), lambda chosen, reason: handed.append((chosen, reason))
    )
    assert beside.adapter is None
    memorized.tokens, beside.tokens = list(range(len(row))), list(range(len(row), len(words)))
    parts = [(memorized, row_ends), (beside, plain_ends)]
    for part, reason in parts if first == "row" else parts[::-1]:
        if part is beside and part.given_up():
            part.error = RuntimeError("given up")
        else:
            part.finish_reason = reason  # type: ignore[assignment]
        part.on_end(part)
    return [("plain" if chosen is beside else "memorized", reason) for chosen, reason in handed]


@pytest.mark.parametrize("first", ["row", "plain"])
@pytest.mark.parametrize(
    ("row", "row_ends", "plain", "plain_ends", "reason"),
    [
        (WORDS, "stop", WORDS, "stop", None),
        (WORDS, "stop", LOOP, "length", None),
        (LOOP, "stop", LOOP, "stop", None),
        (LOOP, "length", WORDS, "length", None),
        (WORDS, "length", LOOP, "stop", None),
        (LOOP, "stop", WORDS, "stop", "repeated itself"),
        (WORDS, "length", WORDS, "stop", "did not end within 16 tokens"),
        (LOOP, "length", WORDS, "stop", "did not end within 15 tokens"),
    ],
)
def test_who_is_chosen(row: Any, row_ends: str, plain: Any, plain_ends: str, reason: str | None, first: str) -> None:
    (chosen,) = ends(row, row_ends, plain, plain_ends, first)
    said = (
        None
        if reason is None
        else f"the memorized answer {reason}, so the base model's was given; try a smaller `target_kl`"
    )
    assert chosen[0] == ("memorized" if reason is None else "plain")
    assert chosen[1] == said


def test_far_beyond_the_base_models_answer_it_need_not_go_on() -> None:
    memorized = Row(Sampling(500), 500, adapter=Adapter({}, {}))
    beside = base_answer(memorized, lambda ids: " ".join(WORDS[: len(ids)]), lambda *_: None)
    beside.tokens, beside.finish_reason = list(range(10)), "stop"
    beside.on_end(beside)
    assert memorized.max_new_tokens == 4 * 10 + 64


def test_the_setting_is_checked() -> None:
    with pytest.raises(SettingsError, match="`fallback` must be True or False, got 'yes'"):
        FastMem(fallback="yes")  # type: ignore[arg-type]
    assert not FastMem.paper().fallback
