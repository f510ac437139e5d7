"""The bundled questions of tiny's world: they are correct, and the recipe still generates them."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from memograft.evaluation.items import SPLITS, Item, sets_of, world
from memograft.evaluation.scores import says
from memograft.model.loading import load
from memograft.prompt.builder import PromptBuilder

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "tiny"
NAMES = ["contradicts", "agrees", "unseen", "elsewhere", "one of five", "disagree", "repeats", "beside"]


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    sys.path.insert(0, str(RECIPE))
    import export_sets

    yield export_sets
    sys.path.remove(str(RECIPE))


@pytest.fixture(scope="module")
def test_split() -> list[Item]:
    return world("test")


def size(item: Item) -> int:
    return sum(len(d.text) for d in item.documents)


def of(items: list[Item], name: str) -> list[Item]:
    return [item for item in items if item.set == name]


@pytest.mark.parametrize("split", SPLITS)
def test_the_recipe_makes_what_is_shipped(recipe: Any, split: str) -> None:
    packed = (files("memograft") / "data" / "world" / f"{split}.jsonl.gz").read_bytes()
    assert packed[4:8] == b"\0\0\0\0", "the time in the gzip header makes the bytes differ from day to day"
    assert gzip.decompress(packed).decode() == recipe.lines(split)


def test_the_shipped_sets_and_their_sizes(test_split: list[Item]) -> None:
    assert sets_of(test_split) == NAMES
    assert {len(of(test_split, name)) for name in NAMES} == {500}
    assert world("test", 3) == [item for name in NAMES for item in of(test_split, name)[:3]]
    assert len({item.id for item in test_split}) == len(test_split)


def test_every_prompt_fits_tiny_with_room_for_the_answer() -> None:
    model, tokenizer = load("tiny")
    prompts = PromptBuilder(tokenizer)
    longest = {item.set: item for split in SPLITS for item in sorted(world(split), key=size)}
    for item in longest.values():
        prompt = prompts.build([{"role": "user", "content": item.question}], item.documents)
        assert len(prompt.ids) + 40 <= model.config.max_position_embeddings - 200, "far from the edge, so all do"


def test_one_of_five_has_one_page_about_what_is_asked(recipe: Any) -> None:
    from sets import items

    positions = set()
    for item in items("one of five", 500, "test"):
        assert len(item.documents) == 5
        subject = subject_of(item.relation, item.answer, item.right).removeprefix("the ")
        about = [n for n, page in enumerate(item.documents) if says(page, subject, ignore_case=True)]
        assert [n for n, page in enumerate(item.documents) if states(item, page, item.right)] == about, item.id
        assert not any(states(item, page, item.belief) for page in item.documents), item.id
        positions.update(about)
    assert positions == set(range(5))


def test_disagreeing_pages_state_two_values(recipe: Any) -> None:
    from sets import items

    for item in items("disagree", 500, "test"):
        values = (item.right, item.other, item.belief)
        assert [[states(item, page, v) for v in values] for page in item.documents] == [
            [True, False, False],
            [False, True, False],
        ], item.id
        assert not says(item.right, item.other), item.id
        assert not says(item.other, item.right), item.id


def test_repeating_pages_state_one_value_in_two_wordings(recipe: Any) -> None:
    from sets import items

    for item in items("repeats", 500, "test"):
        used = [wordings(item, page, item.right) for page in item.documents]
        assert [len(u) for u in used] == [1, 1], item.id
        assert used[0] != used[1], item.id
        assert not any(states(item, page, item.belief) for page in item.documents), item.id
        assert item.other == ""


@cache
def subject_of(relation: str, answer: str, value: str) -> str:
    from data import sentence
    from language import RELATIONS, WORLD

    (subject,) = (s for s in WORLD[relation] if sentence(RELATIONS[relation].answer, s, value) == answer)
    return subject


def wordings(item: Any, page: str, value: str) -> list[str]:
    """The statements of the asked fact with this value on the page."""
    from data import sentence
    from language import RELATIONS

    subject = subject_of(item.relation, item.answer, item.right)
    made = (sentence(s, subject, value) for s in RELATIONS[item.relation].statements)
    return [s for s in made if s in page]


def states(item: Any, page: str, value: str) -> bool:
    return bool(wordings(item, page, value))


def test_beside_never_says_what_is_asked(recipe: Any) -> None:
    from sets import items

    for item in items("beside", 500, "test"):
        subject = subject_of(item.relation, item.answer, item.right).removeprefix("the ")
        text = " ".join(item.documents)
        assert says(text, subject, ignore_case=True), item.id
        assert not states(item, text, item.right), item.id
