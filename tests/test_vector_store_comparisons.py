"""Trees of comparisons: both ways to judge them agree, and one without meaning is refused."""

from __future__ import annotations

import pytest

from memograft import Document, VectorStore
from memograft.errors import FilterError
from memograft.passages.comparisons import Comparison, Group, Part, matches, split, where_of

PAGES = [
    Document("one", "1", {"year": 1990, "tags": ["a", "b"], "title": "Bergamot"}),
    Document("two", "2", {"year": 2001, "tags": [], "title": "bergamot oil"}),
    Document("three", "3", {"year": True, "title": ""}),
]


@pytest.mark.parametrize(
    ("part", "ids", "in_sql"),
    [
        (Comparison("year", ">=", 1990), "12", True),
        (Comparison("year", "<", 2), "3", True),  # True counts as 1
        (Comparison("year", "!=", 1990), "23", True),
        (Comparison("year", "in", [1, 2001]), "23", True),
        (Comparison("year", "nin", [1, 2001]), "1", True),
        (Comparison("tags", "contains", "a"), "1", True),
        (Comparison("tags", "any", ["b", "c"]), "1", True),
        (Comparison("tags", "all", ["b", "c"]), "", True),
        (Comparison("tags", "==", ["a", "b"]), "1", False),
        (Comparison("tags", "is_empty"), "23", True),
        (Comparison("title", "text_match", "amot"), "12", True),
        (Comparison("title", "text_match_insensitive", "BERG"), "12", False),
        (Group((Comparison("year", ">", 1995), Comparison("title", "==", "")), "or"), "23", True),
        (Group((Comparison("year", ">", 1995), Comparison("title", "==", "")), "not"), "1", True),
        (Group(()), "123", True),
    ],
)
def test_a_store_finds_what_python_finds(part: Part, ids: str, in_sql: bool) -> None:
    tree = Group((part,))
    with VectorStore() as store:
        store.add(PAGES)
        assert "".join(page.id for page in store.find(where_of(tree, {}, store))) == ids
        both = where_of(tree, {"$id": ["1", "3"]}, store)
        assert "".join(page.id for page in store.find(both)) == ids.replace("2", "")
    assert "".join(page.id for page in PAGES if matches(tree, page.metadata)) == ids
    assert (not split(tree)[1]) == in_sql


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (Comparison("k", "~", 1), r"`k` is filtered by an unknown operator, got '~'; use ==, !=, >,"),
        (
            Comparison("k", "=="),
            r"the operator '==' on `k` takes a value, got None; ask for .* the operator 'is_empty'",
        ),
        (Comparison("k", "in", "ab"), r"the operator 'in' on `k` takes a list, got 'ab'; write value=\[...\]"),
        (Comparison("k", ">", [1]), r"the operator '>' on `k` takes one value, got \[1\]; use in, any or all"),
        (Comparison("k", "text_match", 7), r"'text_match' on `k` takes a string, got 7; use == for numbers"),
    ],
)
def test_a_comparison_without_meaning_is_refused(part: Comparison, text: str) -> None:
    with pytest.raises(FilterError, match=text):
        where_of(Group((Group((part,), "not"),)), {}, None)
