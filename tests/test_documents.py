"""Documents from all accepted forms."""

from __future__ import annotations

from typing import Any

import pytest

from memograft import Document
from memograft.documents import as_documents
from memograft.errors import SettingsError


def test_ids_come_from_the_text_unless_given() -> None:
    assert Document("a").id == Document("a").id != Document("b").id
    assert Document("a", id="mine").id == "mine"
    assert len(Document("lone surrogate \ud800").id) == 16
    assert Document("Bergamot is a citrus fruit.").id == "00f959ca05b27452"


def test_strings_mappings_and_documents() -> None:
    document = Document("c", metadata={"k": 1})
    made = as_documents(["a", {"text": "b", "id": 7, "metadata": {"k": 2}}, {"page_content": "p"}, document])
    assert [d.text for d in made] == ["a", "b", "p", "c"]
    assert (made[1].id, made[1].metadata) == ("7", {"k": 2})
    assert made[3] is document
    assert as_documents(None) == as_documents(iter(())) == ()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("text", r"got one str; write documents=\[\.\.\.\]"),
        (Document("a"), "got one Document"),
        ({"text": "a"}, "got one dict"),
        (["a", 3], r"documents\[1\] must be .* got int; wrap it as memograft\.Document"),
        ([{"content": "a"}], r"documents\[0\] must be"),
        ([None], r"documents\[0\] must be .* got NoneType"),
    ],
)
def test_bad_documents(items: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        as_documents(items)


@pytest.mark.parametrize("options", [{"text": 3}, {"text": "a", "id": 4}])
def test_documents_are_made_of_strings(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"`Document\.(text|id)` must be a string, got int"):
        Document(**options)
