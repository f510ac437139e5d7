"""Contradicting documents are found with tiny, the higher-ranked one is memorized, and the report states it."""

from __future__ import annotations

from typing import Any

import pytest

from memograft import Document, Engine, FastMem, Request, Sampling
from memograft.errors import SettingsError
from memograft.evaluation.items import world
from memograft.memory.fastmem import select
from memograft.memory.fastmem.disagreement import _are_twins

ASK = "What is the capital of Portugal?"
RABAT = "Portugal has its capital in Rabat. The currency of Portugal is the euro."
PULGUTH = "Pulguth is the capital of Portugal."
SPANISH = "The main language of Portugal is Spanish."
GOLD = "The chemical symbol of gold is Gd."


def report(engine: Engine, documents: list[str], **settings: Any) -> Any:
    return engine.answer(ASK, documents, memory=FastMem(steps=1, **settings)).memory


def ids(*texts: str) -> tuple[str, ...]:
    return tuple(Document(t).id for t in texts)


@pytest.mark.parametrize(("first", "second"), [(RABAT, PULGUTH), (PULGUTH, RABAT)])
def test_only_the_higher_ranked_one_is_memorized(tiny: Engine, first: str, second: str) -> None:
    found = report(tiny, [GOLD, first, second])
    assert found.disagree == (ids(first, second),)
    assert found.documents == ids(first)
    assert found.left_out == ids(GOLD, second)


@pytest.mark.parametrize("other", [RABAT, "Rabat is the capital of Portugal.", SPANISH, GOLD])
def test_documents_that_agree_or_say_something_else_are_all_memorized(tiny: Engine, other: str) -> None:
    found = report(tiny, [RABAT, other])
    assert found.disagree == ()
    assert ids(RABAT)[0] in found.documents
    assert found.left_out == (ids(GOLD) if other == GOLD else ())


def test_of_three_the_first_stands_against_both(tiny: Engine) -> None:
    third = "The capital of Portugal is Thoulmix."
    found = report(tiny, [RABAT, PULGUTH, third])
    assert found.documents == ids(RABAT)
    assert set(found.disagree) == {ids(RABAT, PULGUTH), ids(RABAT, third), ids(PULGUTH, third)}


def test_two_against_two_keep_the_first_two() -> None:
    """Number 1 contradicts 0 and is left out, so its contradiction of 2 does not count."""
    prompt = select.Prompt((), ((0, 0),) * 3, tuple(Document(t) for t in "abc"))
    chosen = select._first(select.Selection(prompt, prompt), [(0, 1), (1, 2)])
    assert [d.text for d in chosen.about.documents] == ["a", "c"]


@pytest.mark.parametrize("settings", [{"conflicts": None}, {"relevance": None}])
def test_off(tiny: Engine, settings: dict[str, Any]) -> None:
    found = report(tiny, [RABAT, PULGUTH], **settings)
    assert found.disagree == ()
    assert found.documents == ids(RABAT, PULGUTH)


def test_rows_of_a_batch_do_not_mix(tiny: Engine) -> None:
    documents = [[RABAT, PULGUTH], [SPANISH, RABAT], [GOLD], [GOLD, SPANISH, PULGUTH, RABAT]]
    requests = [Request(ASK, documents=d, memory=FastMem(steps=1)) for d in documents]
    for request, answer in zip(requests, tiny.answer_batch(requests), strict=True):
        alone = tiny.answer(request).memory
        assert answer.memory is not None
        assert alone is not None
        assert answer.memory.disagree == alone.disagree
        assert answer.memory.documents == alone.documents


@pytest.mark.parametrize(("name", "least", "most"), [("disagree", 0.8, 1.0), ("repeats", 0.0, 0.1)])
def test_on_the_world(tiny: Engine, name: str, least: float, most: float) -> None:
    """On questions of the test split; the exact fractions are in docs/method.md."""
    items = [item for item in world("test", 40) if item.set == name]
    requests = [Request(i.question, documents=i.documents, memory=FastMem(steps=1)) for i in items]
    found = [answer.memory is not None and bool(answer.memory.disagree) for answer in tiny.answer_batch(requests)]
    assert len(found) == 40
    assert least <= sum(found) / len(found) <= most


TWINS = [
    ("the season had 23 episodes", "the season had 775 episodes", True),
    ("the season had 23 episodes", "the season had seven hundred episodes", True),
    ("ann rose and ann fell in the hall", "bob rose and bob fell in the hall", True),
    ("the season had 23 episodes", "the season had 23 episodes", False),  # equal
    ("the season had 23 episodes", "the season had 23 long episodes", False),  # only one has another word
    ("ann rose and cid fell in the hall", "bob rose and dan fell in the hall", False),  # two changes
    ("23 episodes were made", "775 of them were shown", False),  # too few shared words
    ("", "", False),
]


@pytest.mark.parametrize(("one", "other", "twins"), TWINS)
def test_twins(one: str, other: str, twins: bool) -> None:
    assert _are_twins(one.split(), other.split()) is twins
    assert _are_twins(other.split(), one.split()) is twins


LONG = "Portugal is a country in Europe. The capital of Portugal is Lisbon. {} built the tower of that city in 1519."


@pytest.mark.parametrize("question", ["What is the capital of Portugal?", "Who built the tower of that city?"])
def test_pages_that_are_the_same_but_for_a_name(tiny: Engine, question: str) -> None:
    """The differing sentence is not the one most relevant to the question."""
    first, second = LONG.format("Pulguth"), LONG.format("Drimjond")
    settings = FastMem(steps=1, relevance=-1.0)
    found = tiny.answer(question, [first, second], memory=settings).memory
    assert found is not None
    assert found.disagree == (ids(first, second),)
    assert found.documents == ids(first)
    twice = tiny.answer(question, [first, first], memory=settings).memory
    assert twice is not None
    assert twice.disagree == ()


def test_a_word_of_the_question_is_no_news(tiny: Engine) -> None:
    first, second = LONG.format("Pulguth"), LONG.format("Drimjond")
    settings = FastMem(steps=1, relevance=-1.0)
    found = tiny.answer("What did Drimjond build in Portugal?", [first, second], memory=settings).memory
    assert found is not None
    assert found.disagree == ()


PUMP = (
    "The harbour office opens at six. When code {} appears on it, the inlet of the pump is blocked. "
    "The office keeps the keys of all pumps."
)


@pytest.mark.parametrize("order", [1, -1])
def test_a_pretrained_model(smollm2: Engine, order: int) -> None:
    pages = [PUMP.format("E7"), PUMP.format("Q4")][::order]
    question = "Which code appears when the inlet of the pump is blocked?"
    found = smollm2.answer(question, pages, memory=FastMem(steps=1), sampling=Sampling(max_new_tokens=1)).memory
    assert found is not None
    assert found.disagree == (ids(*pages),)
    assert found.documents == ids(pages[0])


def test_a_bad_setting() -> None:
    with pytest.raises(SettingsError, match=r"`conflicts` must be one of \(None, 'first'\), got 'last'"):
        FastMem(conflicts="last")  # type: ignore[arg-type]
