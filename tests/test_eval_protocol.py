"""Protocols: how questions are asked and answers extracted, also with your own file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memograft.errors import SettingsError
from memograft.evaluation.protocol import PROTOCOLS, protocol_of
from memograft.evaluation.readers import read
from memograft.evaluation.split import split_of

SWAP = {
    "question": "who mends the clock",
    "org_context": "Ida mends it.",
    "org_answer": ["Ida"],
    "sub_context": "Otto mends it.",
    "sub_answer": ["Otto"],
}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is: Ida.", "Ida."),
        ("Well. the ANSWER is:\n Ida and\nOtto ", "Ida and\nOtto"),
        ("The answer is: Otto. No, the answer is: Ida", "Ida"),
        ("The answer is:", ""),
        ("The answer is Ida.", None),
        ("", None),
    ],
)
def test_the_paper_reads_what_follows_its_words(text: str, answer: str | None) -> None:
    assert PROTOCOLS["paper"].extract(text) == answer
    assert PROTOCOLS["paper"].extract(text, "choice") == answer
    assert PROTOCOLS["paper"].extract(text, "summary") == text
    assert PROTOCOLS["plain"].extract(text) == text


def test_lengths_of_answers() -> None:
    assert [PROTOCOLS["paper"].max_new_tokens(task) for task in ("qa", "choice", "summary")] == [100, 100, 400]
    assert PROTOCOLS["plain"].max_new_tokens() == 40


def test_the_paper_asks_for_the_form_that_it_reads() -> None:
    asked = PROTOCOLS["paper"].wrap("Who?")
    assert '"The answer is: ..."' in asked
    assert asked.endswith("\nQuestion: Who?")
    assert PROTOCOLS["plain"].wrap("Who?") == PROTOCOLS["paper"].wrap("Who?", "summary") == "Who?"


def test_an_unknown_protocol() -> None:
    with pytest.raises(
        SettingsError, match=r"`protocol` must be one of \['plain', 'paper'\], got 'odd'; check the name"
    ):
        protocol_of("odd")


def test_a_wrapped_question_keeps_the_bare_one_as_its_query(tmp_path: Path) -> None:
    path = tmp_path / "swap.jsonl"
    path.write_text(json.dumps(SWAP))
    (item,) = read(path, contexts=["agrees"], split="all", protocol="paper").items
    assert item.question == PROTOCOLS["paper"].wrap("who mends the clock?")
    assert (item.query, item.protocol) == ("who mends the clock?", "paper")
    (item,) = read(path, contexts=["agrees"], split="all").items
    assert (item.question, item.query, item.protocol) == ("who mends the clock?", "who mends the clock?", "plain")


def test_a_file_of_ones_own_is_asked_whole_and_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    lines = [
        {"question": f"who mends clock {n}", "documents": ["Ida."], "answer": "Ida", "set": "ab"[n % 2]}
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = read(path)
    assert (whole.format, whole.split, whole.skipped) == ("own", "all", {})
    assert [i.id for i in whole.items] == [str(n + 1) for n in (*range(0, 40, 2), *range(1, 40, 2))]
    assert whole.items[0].question == "who mends clock 0", "as it is written"
    assert [i.id for i in read(path, n=2).items] == ["1", "3", "2", "4"]
    tuning = read(path, split="tune").items
    assert {i.id for i in tuning} == {i.id for i in whole.items if split_of(i.question) == "tune"}
    assert 0 < len(tuning) < 40
    paper = read(path, protocol="paper").items[0]
    assert (paper.question, paper.query) == (PROTOCOLS["paper"].wrap("who mends clock 0"), "who mends clock 0")
    with pytest.raises(
        SettingsError, match=r"`context` is for public sets, got \['agrees'\] for .*mine\.jsonl, which has"
    ):
        read(path, contexts=["agrees"])
