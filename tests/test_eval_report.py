"""The page of an evaluation: the selected answers, the plots, and that texts are escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from memograft import Answer, Document
from memograft.errors import SettingsError
from memograft.evaluation.items import Item
from memograft.evaluation.metrics import summary
from memograft.evaluation.records import record
from memograft.evaluation.report import SHOWN, page, write
from memograft.request import Timings, Usage

EVIL = "<script>alert('&')</script>"
VOID = {"meta", "line", "circle"}


class Tags(HTMLParser):
    """Fails if tags are not nested correctly; stores the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def asked(count: int, name: str = "all", **more: Any) -> list[Item]:
    fields = {"documents": (Document("Its page says Rome."),), "answers": ("Rome",)} | more
    return [Item(f"{n}", name, f"Question {n}?", **fields) for n in range(count)]


def answered(items: Sequence[Item], texts: Sequence[str], finish_reason: Any = "stop") -> list[dict[str, Any]]:
    made = [Answer(text, (1,), finish_reason, Usage(1, 0, 1), None, Timings(0, 0, 0)) for text in texts]
    return [
        record(item, answer, False) | {"seconds": 1.0, "commit": "c"} for item, answer in zip(items, made, strict=True)
    ]


def made(items: list[Item], answers: dict[str, list[str]], about: dict[str, Any] | None = None) -> Tags:
    """The page of one set."""
    records = {method: {items[0].set: answered(items, texts)} for method, texts in answers.items()}
    return Tags(page(summary(records), records, items, about or {}))


def articles(tags: Tags) -> int:
    return sum(tag == "article" for tag, _ in tags.seen)


def test_what_stands_on_the_page() -> None:
    items = asked(3)
    texts = ["Rome", "Bonn", "Rome Rome Rome Rome"]
    tags = made(
        items,
        {"plain": ["Bonn", "Rome", "Bonn"], "memorized": texts},
        {"model": "smol", "questions": "mine", "n": 3, "settings": {"steps": 4}, "results": {"secret": 1}},
    )
    squeezed = " ".join(tags.text.split())
    for said in (
        "smol on mine",
        "all n = 3",
        "+0.333 [-1.000, +1.000]",
        "memorized 3 of 3",
        "Question 1?",
        "gold Rome plain Bonn memorized Rome",
        "1 document",
        "Its page says Rome.",
        '"steps": 4',
        "n: 3",
    ):
        assert said.replace(" ", "") in squeezed.replace(" ", ""), said
    assert "secret" not in tags.text
    classes = [about["class"] for tag, about in tags.seen if tag in ("span", "div") and "class" in about]
    assert classes.count("tag changed") == 2, "won, twice"
    assert classes.count("tag spoiled") == 2, "one lost, one repeats"
    assert (classes.count("right"), classes.count("wrong")) == (1 + 2 + 1, 2 + 1 + 2), "of plain, then of both"


def test_intervals_are_drawn_on_one_scale() -> None:
    """From the smallest to the largest end at 10 to 190 pixels, with zero at the right position."""
    items = asked(2)
    tags = made(items, {"plain": ["Rome", "x"], "better": ["Rome", "Rome"], "worse": ["x", "x"]})
    reach = [(float(a["x1"]), float(a["x2"])) for tag, a in tags.seen if tag == "line" and a["class"] == "reach"]
    assert reach == [(100.0, 190.0), (10.0, 100.0)]
    assert [float(a["cx"]) for tag, a in tags.seen if tag == "circle"] == [145.0, 55.0]
    assert {a["x1"] for tag, a in tags.seen if tag == "line" and a["class"] == "zero"} == {"100.0"}
    alone = made(items, {"memorized": ["Rome", "Rome"]})
    assert not [a for tag, a in alone.seen if tag == "line" and a["class"] == "zero"]
    assert "1.000 [1.000, 1.000]" in alone.text


def test_the_answers_to_read_are_of_every_kind() -> None:
    items = asked(100)
    plain = ["Rome"] * 50 + ["Bonn"] * 50
    memorized = ["Bonn"] * 45 + ["Rome"] * 5 + ["Bonn"] * 48 + ["Rome", "no no no no"]
    tags = made(items, {"plain": plain, "memorized": memorized})
    assert articles(tags) == 2 * SHOWN
    mine = tags.text[tags.text.index("memorized 20 of 100") :]
    flags = re.findall(r"^\s*(won|lost|repeats)$", mine, re.MULTILINE)
    assert (flags.count("won"), flags.count("repeats")) == (1, 1), "the only ones"
    assert flags.count("lost") == 9
    numbers = [int(n) for n in re.findall(r"Question (\d+)\?", mine)]
    assert numbers == sorted(numbers)
    few = made(asked(3), {"plain": ["Rome"] * 3})
    assert articles(few) == 3


def test_flags() -> None:
    (item,) = asked(1, protocol="paper")
    ended, cut = answered([item], ["Rome"]), answered([item], ["The answer is: Rome"], "length")
    failed = [record(item, ValueError("too long"), False) | {"seconds": 1.0}]
    cut[0] |= {"rolled_back": True, "memorized": 0, "recites": 13}
    records = {"plain": {"all": ended}, "cut": {"all": cut}, "failed": {"all": failed}}
    for row in cut:
        row.update(kl=0.1, loss_before=1.0, loss_after=1.0, steps=1, disagree=False)
    tags = Tags(page(summary(records), records, [item], {}))
    for said in ("won", "not in the form asked for", "unfinished", "rolled back", "nothing memorized", "failed"):
        assert re.search(rf"^\s*{said}$", tags.text, re.MULTILINE), said
    assert "recites 13 words" in tags.text
    assert "ValueError: too long" in tags.text


def test_summaries_have_no_right_and_wrong() -> None:
    items = asked(2, "sums", task="summary", answers=("The pump is blocked.",))
    tags = made(items, {"plain": ["The pump.", "Yes."], "memorized": ["The pump is blocked.", "No."]})
    assert "ROUGE-L 1.00" in tags.text
    classes = {about.get("class") for _, about in tags.seen}
    assert not {"right", "wrong", "tag changed", "tag spoiled"} & classes


def test_no_text_becomes_markup_and_nothing_is_loaded() -> None:
    item = Item(EVIL, EVIL, EVIL, (Document(EVIL * 100),), (EVIL,), belief=EVIL)
    tags = made([item], {"plain": [EVIL], EVIL: [EVIL]}, {"model": EVIL, EVIL: {EVIL: EVIL}, "device": EVIL})
    assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in tags.seen}
    assert not [about for _, about in tags.seen if {"src", "href"} & about.keys()]
    assert tags.text.count(EVIL) > 10
    assert EVIL * 100 not in tags.text, "a long document is cut"


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    items = asked(1)
    records = {"plain": {"all": answered(items, ["Rome"])}}
    results = summary(records)
    write(tmp_path / "report.html", results, records, items, {})
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page(results, records, items, {})
    with pytest.raises(SettingsError, match="cannot be written"):
        write(tmp_path / "missing" / "report.html", results, records, items, {})
    assert [f.name for f in tmp_path.iterdir()] == ["report.html"]
