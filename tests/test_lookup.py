"""Drafts from the prompt: they change no answer, and cost little where they are wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from families import FAMILIES, ROUTED
from memograft import Request, Sampling
from memograft.decoding.lookup import Lookup
from memograft.errors import SettingsError
from test_engine import FACTS, ask, generated, prompt_ids
from test_session import STRONG, passes

SLIDING = {"gemma2", "gemma3_text", "mistral"}


@pytest.mark.parametrize("family", FAMILIES)
def test_right_and_wrong_drafts_change_no_answer(make_engine: Any, family: str, monkeypatch: Any) -> None:
    """Alone and in a batch, where rows accept different numbers of tokens; with memories, and beside a sampled row."""
    plain, engine = make_engine(family, prompt_lookup=0), make_engine(family, prompt_lookup=6)
    strong = None if family in ROUTED else STRONG
    requests = [
        ask("Say it again.", n=24),
        ask(documents=FACTS, memory=strong, n=23),
        ask("Which?", documents=FACTS[:1], n=9),
        ask("Say something.", sampling=Sampling(17, temperature=0.8, seed=3, top_p=0.9)),
    ]
    expected = [plain.answer(r).token_ids for r in requests]
    said = {tuple(prompt_ids(engine, r)): tokens for r, tokens in zip(requests, expected, strict=True)}
    random, verified = torch.Generator().manual_seed(0), []

    def draft(self: Lookup, tokens: list[int], rows: int, room: int) -> list[int]:
        """What the model will choose, up to a random place."""
        self._at = 0
        right = said[tuple(self._prompt)][len(tokens) : len(tokens) + min(6, room)]
        wrong = int(torch.randint(0, 7, (), generator=random))
        return [token if n < wrong else (token + 1) % 320 for n, token in enumerate(right)]

    monkeypatch.setattr(Lookup, "draft", draft)
    monkeypatch.setattr(Lookup, "verified", lambda _, drafted, right: verified.append((drafted, right)))
    with passes(engine) as shapes:
        assert [engine.answer(r).token_ids for r in requests] == expected
        alone = len(verified)
        assert [a.token_ids for a in engine.answer_batch(requests)] == expected
    assert len({right for _, right in verified}) > 3
    assert any(1 < tokens <= 7 for _, tokens in shapes)
    assert (len(verified) > alone) == (family not in SLIDING), "drafts of several rows, if no window slides"


def test_an_error_in_a_pass_over_drafts_ends_the_row_that_causes_it(engine: Any, monkeypatch: Any) -> None:
    requests = [ask("Who?", n=12), ask(documents=FACTS, n=12), ask("Why?", n=12)]
    expected = [generated(engine, request) for request in requests]
    bad = next(token for token in expected[1][1:] if token not in (*expected[0], *expected[2]))
    said = {tuple(prompt_ids(engine, r)): tokens for r, tokens in zip(requests, expected, strict=True)}

    def draft(self: Lookup, tokens: list[int], rows: int, room: int) -> list[int]:
        return list(said[tuple(self._prompt)][len(tokens) : len(tokens) + min(2, room)])

    def hook(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] <= 3 and bad in kwargs["input_ids"]:
            raise ZeroDivisionError("in the model")

    monkeypatch.setattr(Lookup, "draft", draft)
    monkeypatch.setattr(Lookup, "verified", lambda *_: None)
    handle = engine.model.register_forward_pre_hook(hook, with_kwargs=True)
    with passes(engine) as shapes:
        first, error, last = engine.answer_batch(requests, return_exceptions=True)
    handle.remove()
    assert (3, 3) in shapes
    assert isinstance(error, ZeroDivisionError)
    assert [first.token_ids, last.token_ids] == [expected[0], expected[2]]


def test_a_draft_continues_where_the_prompt_does() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 6, 7, 8, 2, 3, 9, 20, 21], most=8)
    assert lookup.draft([20, 2], 1, 50) == []
    assert lookup.draft([2, 3], 1, 50) == [4, 5, 6, 7, 8, 2]
    assert lookup.draft([2, 3], 1, 4) == [4, 5, 6, 7]
    lookup.verified(4, 4)
    assert lookup.draft([2, 3, 4, 5, 6, 7, 8], 1, 50) == [2, 3, 9, 20, 21]
    assert lookup.draft([2, 3, 4, 5, 6, 7, 8], 1, 2) == [2, 3], "no more than fits"
    assert lookup.draft([2, 3, 4, 5, 6, 7, 8], 4, 50) == [2, 3, 9], "less beside other rows"
    assert lookup.draft([2, 3, 4, 5, 6, 7, 8], 16, 50) == []
    lookup.verified(3, 2)
    assert lookup.draft([2, 3, 4, 5, 6, 7, 8, 2, 3, 30], 1, 50) == []


def test_after_a_wrong_draft_the_next_token_has_none() -> None:
    lookup = Lookup([1, 2, 3, 4, 5], most=8)
    drafted = 0
    for _ in range(64):
        if draft := lookup.draft([1, 2], 1, 50):
            drafted += 1
            lookup.verified(len(draft), 0)
    assert drafted == 32, "each second time"


@pytest.mark.parametrize("value", [-1, -8])
def test_a_draft_of_less_than_nothing_is_refused(make_engine: Any, value: int) -> None:
    with pytest.raises(SettingsError, match="`prompt_lookup` must be at least 0 tokens, got"):
        make_engine("llama", prompt_lookup=value)


def test_an_answer_that_cites_a_page_takes_fewer_passes(smollm2: Any) -> None:
    page = (
        "The old ferry from Tromso to Halden leaves every morning at 6:45 from the third pier behind the fish market."
    )
    request = Request("Repeat the sentence word by word.", documents=[page], sampling=Sampling(40))
    with passes(smollm2) as shapes:
        answer = smollm2.answer(request)
    assert "leaves every morning at 6:45" in answer.text
    assert len(shapes) < 0.7 * len(answer.token_ids)
