"""The readers on the published sets, if these are present beside the checkout."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from memograft.evaluation.items import Item, sets_of
from memograft.evaluation.readers import Reading, read
from memograft.evaluation.readers.pages import holds, words

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SWAPS, SQUAD = DATA / "nqswap" / "nqswap-dev.jsonl.xz", DATA / "squad" / "dev-v1.1.json.xz"
FILES = {
    "nqswap": SWAPS,
    "squad": SQUAD,
    "memotrap": DATA / "memotrap" / "memotrap.json",
    "xsum": DATA / "summaries" / "xsum-1000.jsonl.xz",
    "wikihow": DATA / "summaries" / "wikihow-1000.jsonl.xz",
}
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no published sets in ../shared/data")


def read_if_there(path: Path, **options: object) -> Reading:
    if not path.is_file():
        pytest.skip(f"no {path.name} in ../shared/data")
    return read(path, **options)  # type: ignore[arg-type]


def of(reading: Reading, name: str) -> list[Item]:
    return [item for item in reading.items if item.set == name]


@pytest.mark.parametrize("format", FILES)
def test_the_format_is_recognised_and_both_splits_hold_about_half(format: str) -> None:
    counts = []
    for split in ("test", "tune"):
        reading = read_if_there(FILES[format], split=split)
        assert reading.format == format
        counts.append(len({item.group for item in reading.items}))
    assert 0.4 < counts[0] / sum(counts) < 0.6


def test_every_swap_has_its_answers_on_its_pages() -> None:
    reading = read_if_there(SWAPS)
    assert sets_of(reading.items) == ["contradicts", "agrees", "irrelevant", "one of five", "disagree", "no document"]
    assert len(of(reading, "contradicts")) >= 300
    assert reading.skipped["the page is a table"] > 100
    for item in reading.items:
        told = [any(holds(words(d.text), words(answer)) for answer in item.answers) for d in item.documents]
        if item.set in ("contradicts", "agrees"):
            assert told == [True], item
        elif item.set == "irrelevant":
            assert told == [False], item
        elif item.set == "one of five":
            assert (len(told), sum(told)) == (5, 1), item
        elif item.set == "disagree":
            assert told[0], item
        assert not any(re.search(r"</?[A-Z][a-z]*>", d.text) for d in item.documents), item
        assert len({d.text for d in item.documents}) == len(item.documents), item


def test_pages_of_squad_that_are_irrelevant_are_of_another_article() -> None:
    reading = read_if_there(SQUAD)
    titles = {item.id: item.documents[0].metadata["title"] for item in of(reading, "agrees")}
    assert len(titles) > 5_000
    for item in of(reading, "irrelevant"):
        (page,) = item.documents
        assert page.metadata["title"] != titles[item.id], item
        assert not any(holds(words(page.text), words(answer)) for answer in item.answers), item
    assert len({i.documents[0].text for i in of(reading, "irrelevant")}) > 500
