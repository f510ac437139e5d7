"""Contexts: which pages a question gets, in which order, and which split; all by hashes of the questions."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from memograft.errors import SettingsError
from memograft.evaluation.items import Item
from memograft.evaluation.readers import CONTEXTS, read
from memograft.evaluation.readers.contexts import AMBIGUOUS, LACKS, NONE_LEFT
from memograft.evaluation.readers.pages import holds, words
from memograft.evaluation.readers.reading import ANOTHER_SWAP
from memograft.evaluation.split import place, split_of

TOWNS = ("Ost", "Vik", "Lund", "Berg", "Sund", "Holm", "Dal", "Nes", "Skog", "Fjell", "Elv", "Sand")
SWAPS = ("Zell", "Yorn")


def swap(town: str, other: str) -> dict[str, Any]:
    return {
        "id": f"{town}-{other}",
        "question": f"who founded {town}",
        "org_context": f"<P> {town} was founded by Anna{town} . </P>",
        "org_answer": [f"Anna{town}"],
        "sub_context": f"<P> {town} was founded by {other}{town} . </P>",
        "sub_answer": [f"{other}{town}"],
    }


def written(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


@pytest.fixture
def swaps(tmp_path: Path) -> Path:
    return written(tmp_path / "swaps.jsonl", [swap(town, other) for town in TOWNS for other in SWAPS])


def of(path: Path, context: str, split: str = "all", **options: Any) -> list[Item]:
    return read(path, contexts=[context], split=split, **options).items


def town_of(item: Item) -> str:
    return item.group.removeprefix("who founded ").title()


def own(item: Item) -> list[int]:
    """Indices of the pages about the town in the question."""
    return [n for n, page in enumerate(item.documents) if page.text.startswith(town_of(item))]


def test_contradicts_has_the_page_with_another_answer(swaps: Path) -> None:
    for item in of(swaps, "contradicts"):
        assert [d.text.split()[-2] for d in item.documents] == list(item.answers)
        assert item.answers[0].startswith(SWAPS)
        assert item.belief == f"Anna{town_of(item)}"


def test_agrees_has_the_page_as_it_is(swaps: Path) -> None:
    for item in of(swaps, "agrees"):
        assert [d.text.split()[-2] for d in item.documents] == list(item.answers) == [f"Anna{town_of(item)}"]
        assert item.belief == item.answers[0]


def test_irrelevant_has_a_page_of_another_question_of_the_same_split(swaps: Path) -> None:
    for item in of(swaps, "irrelevant"):
        (page,) = item.documents
        asked_there = page.text.split()[0]
        assert asked_there != town_of(item)
        assert split_of(f"who founded {asked_there}") == split_of(f"who founded {town_of(item)}")
        assert page.text == f"{asked_there} was founded by Anna{asked_there} .", "as it is"
        assert item.answers == (f"Anna{town_of(item)}",)


def test_irrelevant_pages_do_not_hold_the_answer(tmp_path: Path) -> None:
    """All but one of the other pages contain Anna, in another case and before a comma."""
    pages = {town: f"{town}: ANNA, {town} and rye." for town in TOWNS} | {"Ost": "Ost has rye.", "Vik": "Vik has rye."}
    rows = [{"question": f"who is in {t}", "context": page, "answers": ["Anna"]} for t, page in pages.items()]
    reading = read(written(tmp_path / "a.jsonl", rows), contexts=["irrelevant"], split="all")
    assert {i.documents[0].text for i in reading.items} <= {"Ost has rye.", "Vik has rye."}
    assert len(reading.items) + sum(reading.skipped.values()) == len(TOWNS)
    assert len(reading.items) > len(TOWNS) // 2


def test_irrelevant_pages_are_of_other_articles(tmp_path: Path) -> None:
    def rows(title: str) -> list[dict[str, Any]]:
        return [
            {"question": f"what does {t} grow", "answers": {"text": [f"x{t}"]}, "context": f"x{t}.", "title": title}
            for t in TOWNS
            if split_of(f"what does {t} grow") == "test"
        ]  # fmt: skip

    alike = rows("Towns")
    assert len(alike) > 2
    path = written(tmp_path / "alike.jsonl", alike)
    with pytest.raises(SettingsError, match=r"a question that can be asked, got none .*too few other questions' pages"):
        of(path, "irrelevant")
    apart = [row | {"title": str(n)} for n, row in enumerate(alike)]
    assert len(of(written(tmp_path / "apart.jsonl", apart), "irrelevant")) == len(alike)


def test_one_of_five_has_its_page_anywhere_among_four_others(tmp_path: Path) -> None:
    towns = [f"{a}{b.lower()}" for a in TOWNS for b in TOWNS]
    path = written(tmp_path / "many.jsonl", [swap(town, SWAPS[0]) for town in towns])
    items = of(path, "one of five")
    places = [own(item) for item in items]
    assert all(len(item.documents) == 5 and len(at) == 1 for item, at in zip(items, places, strict=True))
    assert all(len({d.text for d in item.documents}) == 5 for item in items)
    assert {at[0] for at in places} == set(range(5))
    for item, (at,) in zip(items, places, strict=True):
        others = [d.text for n, d in enumerate(item.documents) if n != at]
        assert item.answers[0] in item.documents[at].text
        assert not any(said in text for text in others for said in (*item.answers, item.belief))
    assert len({tuple(d.text for n, d in enumerate(i.documents) if n not in own(i)) for i in items}) > len(items) // 2


def test_disagree_has_both_pages_and_the_first_is_right(tmp_path: Path) -> None:
    towns = [f"{a}{b.lower()}" for a in TOWNS for b in TOWNS[:4]]
    items = of(written(tmp_path / "many.jsonl", [swap(town, SWAPS[0]) for town in towns]), "disagree")
    assert {item.kind for item in items} == {"original first", "substitute first"}
    for item in items:
        first, second = (d.text.split()[-2] for d in item.documents)
        assert (item.answers, item.other) == ((first,), second)
        assert item.kind == ("original first" if first == item.belief else "substitute first")
        assert item.belief in (first, second)


def test_answers_that_hold_each_other_cannot_disagree(tmp_path: Path) -> None:
    record = swap("Ost", "Zell") | {"org_answer": ["Ann"], "sub_answer": ["ann of Ost"]}
    reading = read(written(tmp_path / "a.jsonl", [record, swap("Vik", "Zell")]), split="all", contexts=["disagree"])
    assert [town_of(item) for item in reading.items] == ["Vik"]
    assert reading.skipped == {f"disagree: {AMBIGUOUS}": 1}


def test_no_document_has_none(swaps: Path) -> None:
    assert {item.documents for item in of(swaps, "no document")} == {()}


def test_too_few_pages_are_counted(tmp_path: Path) -> None:
    reading = read(written(tmp_path / "a.jsonl", [swap("Ost", "Zell")]), split="all")
    assert {item.set for item in reading.items} == {"contradicts", "agrees", "disagree", "no document"}
    assert reading.skipped == {f"irrelevant: {NONE_LEFT}": 1, f"one of five: {NONE_LEFT}": 1}


def test_questions_without_a_page_are_counted_where_one_is_needed(tmp_path: Path) -> None:
    rows = [{"question": "who dug the canal", "context": "Ida dug the canal.", "answers": ["Ida"]}]
    rows += [{"question": "who dug the ditch", "answer": ["Otto"]}]  # NQ-open's form
    path = written(tmp_path / "a.jsonl", rows)
    reading = read(path, contexts=["agrees", "no document"], split="all")
    assert sorted((i.set, i.answers[0]) for i in reading.items) == [
        ("agrees", "Ida"), ("no document", "Ida"), ("no document", "Otto"),
    ]  # fmt: skip
    assert reading.skipped == {f"agrees: {LACKS}": 1}
    with pytest.raises(SettingsError, match=r"`context` of .* \(nq\) must be one of \['agrees', 'irrelevant', 'one of"):
        of(path, "contradicts")


def test_all_contexts_and_one_group_for_a_question(swaps: Path) -> None:
    items = read(swaps, split="all").items
    groups = {name: {i.group for i in items if i.set == name} for name in CONTEXTS if name != "one of five"}
    assert set(map(frozenset, groups.values())) == {frozenset(f"who founded {town.lower()}" for town in TOWNS)}


def test_one_swap_of_each_question_unless_all_are_wanted(swaps: Path) -> None:
    reading = read(swaps, contexts=["contradicts", "agrees"], split="all")
    assert [sum(i.set == name for i in reading.items) for name in ("contradicts", "agrees")] == [len(TOWNS)] * 2
    assert reading.skipped == {ANOTHER_SWAP: len(TOWNS)}
    assert {i.answers[0][:4] for i in reading.items if i.set == "contradicts"} == set(SWAPS), "the hash takes either"
    every = read(swaps, contexts=["contradicts", "agrees"], split="all", every_swap=True)
    assert sum(i.set == "contradicts" for i in every.items) == 2 * len(TOWNS)
    assert sum(i.set == "agrees" for i in every.items) == len(TOWNS), "the same page twice is one question"
    assert every.skipped == {}


def test_the_order_of_the_file_does_not_matter(swaps: Path, tmp_path: Path) -> None:
    lines = swaps.read_text().splitlines(keepends=True)
    random.Random(5).shuffle(lines)
    (tmp_path / "other.jsonl").write_text("".join(lines))
    assert read(tmp_path / "other.jsonl", split="all") == read(swaps, split="all")


def test_the_first_n_begin_the_first_more(swaps: Path) -> None:
    few, more = of(swaps, "irrelevant", n=3), of(swaps, "irrelevant", n=9)
    assert (len(few), len(more)) == (3, 9)
    assert more[:3] == few
    assert [i.id for i in more] != [i.id for i in sorted(more, key=lambda i: i.id)]


def test_the_split_is_the_first_byte_of_the_hash() -> None:
    for town in TOWNS:
        even = hashlib.sha256(f"who founded {town.lower()}".encode()).digest()[0] % 2 == 0
        assert split_of(f"  Who founded\n {town} ") == ("tune" if even else "test")
    assert {split_of(f"who founded {town}") for town in TOWNS} == {"tune", "test"}


def test_the_splits_share_no_question_and_are_all(swaps: Path) -> None:
    groups = {split: {i.group for i in read(swaps, split=split).items} for split in ("test", "tune", "all")}
    assert groups["test"] | groups["tune"] == groups["all"]
    assert not groups["test"] & groups["tune"]
    assert {i.group for i in read(swaps).items} == groups["test"], "which is what is read if nothing is said"
    with pytest.raises(SettingsError, match=r"`split` must be one of \('test', 'tune', 'all'\), got 'train'"):
        read(swaps, split="train")


def test_a_question_is_asked_alike_whatever_split_is_read(swaps: Path) -> None:
    for split in ("test", "tune"):
        for context in ("irrelevant", "contradicts", "disagree"):
            whole = of(swaps, context)
            assert of(swaps, context, split) == [i for i in whole if split_of(i.group) == split]


def test_a_split_without_questions(tmp_path: Path) -> None:
    town = next(t for t in TOWNS if split_of(f"who founded {t}") == "tune")
    path = written(tmp_path / "a.jsonl", [swap(town, "Zell")])
    with pytest.raises(
        SettingsError, match=r"must hold a question of the split 'test', got none .*; take `split` \"al"
    ):
        read(path)


def test_a_context_that_is_not_there(swaps: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"`context` must be one of \['contradicts', .*\], got 'odd'; check the name"
    ):
        of(swaps, "odd")


def test_whole_words_are_looked_for() -> None:
    assert holds(words("It was 1,000 in New-York."), words("new york"))
    assert not holds(words("Annapolis"), words("Anna"))
    assert not holds(words("anything"), words("?"))


def test_a_place_is_below_the_count_and_differs() -> None:
    assert {place(5, "place", town) for town in (*TOWNS, *map(str, range(20)))} == set(range(5))
    assert place(5, "a", "b c") == place(5, "A", "b  C")
