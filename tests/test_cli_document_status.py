"""The status of documents from a report: indices of rivals, documents that did not fit or were rolled back."""

from __future__ import annotations

import pytest

from memograft import Document
from memograft.cli.document_status import disagreements, nothing_memorized, statuses
from memograft.memory.report import MemoryReport

A, B, C, D = (Document(f"Text {id}.", id) for id in "abcd")
REPORT = MemoryReport(
    documents=("a",), left_out=("b", "c"), relevance=(0.9, 0.88, 0.123), disagree=(("a", "b"),), steps=3
)


def test_each_document_has_its_relevance_and_a_reason():
    told = statuses([A, B, C, D], REPORT, dropped=[D])
    assert [status.said for status in told] == [
        "memorized (relevance 0.90)",
        "not memorized: disagrees with [1] (relevance 0.88)",
        "not memorized: about something else (relevance 0.12)",
        "not memorized: it did not fit the model's window",
    ]
    assert [status.memorized for status in told] == [True, False, False, False]


def test_nothing_judged():
    (status,) = statuses([A], MemoryReport(documents=("a",), steps=3))
    assert (status.said, status.relevance, status.as_dict()["relevance"]) == ("memorized", None, None)


def test_rolled_back_is_not_memorized():
    report = MemoryReport(documents=("a",), left_out=("b",), steps=3, rolled_back=True, reason="the KL is beyond")
    assert [status.said for status in statuses([A, B], report)] == [
        "not memorized: rolled back",
        "not memorized: about something else",
    ]
    assert nothing_memorized(report) == ""


def test_what_was_rolled_back_by_itself_says_why():
    """With composed memories, also if all of them were rolled back."""
    warnings = ("document b was not memorized: the KL is beyond",)
    report = MemoryReport(documents=("a",), left_out=("b",), steps=3, warnings=warnings)
    assert [status.said for status in statuses([A, B], report)] == ["memorized", "not memorized: the KL is beyond"]
    report = MemoryReport(left_out=("b",), rolled_back=True, reason=warnings[0], warnings=warnings)
    assert statuses([B], report)[0].said == "not memorized: the KL is beyond"


def test_a_document_without_tokens_is_not_memorized():
    report = MemoryReport(documents=("a",), reason="nothing to memorize: the request has documents of 1 tokens")
    assert statuses([A], report)[0].said == "not memorized: nothing to memorize in it"
    assert nothing_memorized(report) == "nothing was memorized: the request has documents of 1 tokens"


@pytest.mark.parametrize(
    ("memorized", "disagree", "lines"),
    [
        (("a",), (("a", "b"),), ["documents a and b disagree; only a was memorized"]),
        (
            ("a",),
            (("a", "b"), ("b", "c"), ("a", "c")),
            [
                "documents a and b disagree; only a was memorized",
                "documents b and c disagree; neither was memorized",
                "documents a and c disagree; only a was memorized",
            ],
        ),
        (
            ("a", "c"),
            (("a", "b"), ("b", "c")),
            ["documents a and b disagree; only a was memorized", "documents b and c disagree; only c was memorized"],
        ),
        (("a", "b"), (), []),
    ],
)
def test_disagreements(memorized, disagree, lines):
    assert disagreements(MemoryReport(documents=memorized, disagree=disagree)) == lines


def test_a_rival_is_one_that_was_memorized():
    report = MemoryReport(documents=("a",), left_out=("b", "c"), disagree=(("a", "b"), ("a", "c"), ("b", "c")))
    assert [status.why for status in statuses([A, B, C], report)] == ["", "disagrees with [1]", "disagrees with [1]"]
