"""Scores of one answer: SQuAD's scores, answers that loop or recite, and summaries."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

from memograft import Answer, Document
from memograft.decoding.repetition import repeats
from memograft.errors import MissingExtraError
from memograft.evaluation import scores
from memograft.evaluation.items import Item
from memograft.evaluation.records import record
from memograft.evaluation.scores import exact_match, f1, holds, normalised, recites, rouge_l, says
from memograft.memory.report import MemoryReport
from memograft.request import Timings, Usage

PAGE = "If E7 shows, the pump is blocked. Turn the machine off and rinse the pump under warm water."
ITEM = Item("1", "all", "What does E7 mean?", (Document(PAGE),), ("pump is blocked",), belief="the door is open")


def answer(text: str, finish_reason: Any = "stop", memory: MemoryReport | None = None) -> Answer:
    tokens = tuple(range(len(text.split())))
    return Answer(text, tokens, finish_reason, Usage(9, 0, len(tokens)), memory, Timings(0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("text", "value", "ignore_case", "found"),
    [
        ("The capital is Rome.", "Rome", False, True),
        ("Rome", "Rome", False, True),
        ("Romeo", "Rome", False, False),
        ("1905", "190", False, False),
        ("It costs $5 (five).", "$5", False, True),
        ("rome", "Rome", False, False),
        ("rome", "Rome", True, True),
        ("Sankt \u00c4gidi", "\u00e4gidi", True, True),
        ("anything", "", False, False),
    ],
)
def test_says_looks_for_whole_words(text: str, value: str, ignore_case: bool, found: bool) -> None:
    assert says(text, value, ignore_case) is found


def test_a_looping_answer_says_the_value_and_is_not_clean() -> None:
    """Containment does not show this problem."""
    good = record(ITEM, answer("E7 means that the pump is blocked."), True)
    looping = record(ITEM, answer("The pump is blocked. rinse the pump. rinse the pump. rinse the pump. rin"), True)
    endless = record(ITEM, answer("The pump is blocked, which you can see by its", "length"), True)
    wrong = record(ITEM, answer("The door is open."), True)
    assert [(r["right"], r["clean"]) for r in (good, looping, endless, wrong)] == [
        (True, True),
        (True, False),
        (True, False),
        (False, False),
    ]
    assert (looping["repeats"], looping["finish_reason"], endless["repeats"]) == (True, "stop", False)
    assert good["f1"] > looping["f1"] > 0
    assert (good["recites"], wrong["belief"], wrong["chars"]) == (4, True, 17)
    assert (good["new_tokens"], good["timings"]) == (7, {"prefill": 0.1, "memorize": 0.2, "decode": 0.3})


def test_a_record_of_a_memory_and_of_an_error() -> None:
    report = MemoryReport(steps=3, loss_before=2.0, kl=0.5, documents=("a",), relevance=(0.5, float("nan")))
    made = record(ITEM, answer("The pump.", memory=replace(report, rolled_back=True, reason="why")), True)
    wanted = {"steps": 3, "loss_before": 2.0, "loss_after": None, "kl": 0.5, "memorized": 1, "relevance": [0.5, None]}
    assert made.items() >= (wanted | {"rolled_back": True, "reason": "why", "disagree": False}).items()
    failed = record(ITEM, ValueError("too long"), True)
    assert failed["error"] == "ValueError: too long"
    assert not {"text", "timings", "kl"} & failed.keys()
    assert (failed["right"], failed["clean"], failed["f1"], failed["finish_reason"]) == (False, False, 0.0, None)


def test_an_answer_is_read_as_its_protocol_says() -> None:
    paper = replace(ITEM, protocol="paper", answers=("1,000 pumps",), group="g")
    bare, formed = (record(paper, answer(f"{form}The 1000 pumps!"), True) for form in ("", "The answer is: "))
    assert [(r["formed"], r["hit"], r["em"], r["right"]) for r in (bare, formed)] == [
        (False, False, False, False),
        (True, True, True, False),  # only the paper's normalised comparison matches the two spellings
    ]
    assert bare["group"] == "g"
    choice = replace(ITEM, task="choice", answers=("more",), belief="sore")
    assert [record(choice, answer(text), True)["right"] for text in ("more", '"sore" or "more"', "sore")] == [
        True,
        False,
        False,
    ]
    summed = replace(ITEM, task="summary", answers=("The pump is blocked",))
    assert record(summed, answer("A pump was blocked."), True)["rouge_l"] == pytest.approx(0.5)
    assert record(summed, ValueError("no"), True)["rouge_l"] == 0.0
    assert "rouge_l" not in record(ITEM, answer("A pump."), True)


def test_exact_match_and_f1_are_squads() -> None:
    assert normalised("The  quick-brown Fox's an apple!") == "quickbrown foxs apple"
    assert holds("Some 1,000 Romans", "the 1000 roman")
    assert not holds("nothing of it", "The")
    assert exact_match("the Beatles.", ["Queen", "The Beatles"])
    assert not exact_match("by the Beatles", ["Beatles"])
    assert f1("by the Beatles", ["Beatles"]) == pytest.approx(2 / 3)
    assert f1("rome rome", ["Rome"]) == pytest.approx(2 / 3), "a word counts as often as it is wanted"
    assert f1("Paris", ["Rome", "Paris, France", "paris"]) == 1.0, "the best of the answers"
    assert f1("Paris", ["Rome"]) == f1("", ["Rome"]) == 0.0
    assert f1("The", [""]) == 1.0, "nothing said where nothing is wanted"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", False),
        ("one two", False),
        ("no no no no", True),
        ("a b c d e a b c", True),  # 2 of 6 trigrams
        ("a b c d e f g h i j a b c", False),  # 2 of 11
        ("a b c d e f g a b c", True),  # 2 of 8
        ("a b c d e f g h a b c x", False),  # 2 of 10 are not more than a fifth
        ("The pump. the PUMP, the pump!", True),
        ("东京东京东京东京", True),
        ("东京是日本的首都", False),
    ],
)
def test_repeats(text: str, found: bool) -> None:
    assert repeats(text) is found


def test_recites() -> None:
    assert recites("It says: rinse the pump under WARM water!", ["Other.", PAGE]) == 6
    assert recites("water warm under", [PAGE]) == 1
    assert recites("water off the", ["warm water", "off the"]) == 2, "a run does not go on in the next document"
    assert recites("", [PAGE]) == recites("Yes", []) == 0


def test_rouge_l() -> None:
    said = "a cat sat here"
    assert rouge_l(said, ["the cat sat on the mat"]) == pytest.approx(0.4)  # 2 of 4, 2 of 6
    assert rouge_l(said, ["nothing", "cats sat"]) == pytest.approx(2 / 3), "stemmed, and the best of them"


def test_summaries_need_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    scores.check_rouge()
    scores._scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(MissingExtraError, match=r'not installed; run pip install "memograft\[eval\]"'):
        scores.check_rouge()
