"""Documents in every form LangChain has for them."""

from __future__ import annotations

import base64
import json
from datetime import date
from typing import Any

import pytest
from langchain_core.documents import Document
from memograft import Document as Passage
from memograft.chat import document_of as from_block
from memograft.errors import SettingsError

from langchain_memograft._documents import from_artifact, to_documents


def test_every_form_becomes_a_document_in_the_same_order() -> None:
    items = [
        Document("one", id="1", metadata={"page": 3}),
        Passage("two", "2", {"page": 4}),
        "three",
        {"page_content": "four", "id": 4, "metadata": {"page": 5}},
        {"text": "five"},
    ]
    documents = to_documents(item for item in items)
    assert [d.text for d in documents] == ["one", "two", "three", "four", "five"]
    assert [d.id for d in documents][:2] == ["1", "2"]
    assert documents[3].id == "4"
    assert [dict(d.metadata) for d in documents] == [{"page": 3}, {"page": 4}, {}, {"page": 5}, {}]
    assert to_documents(None) == to_documents([]) == ()


def test_documents_without_an_id_are_known_by_their_text() -> None:
    first, second = to_documents([Document("same"), "same"])
    assert first.id == second.id != ""


@pytest.mark.parametrize("one", ["text", {"text": "text"}, Document("text"), Passage("text"), 3])
def test_one_document_is_no_list(one: Any) -> None:
    with pytest.raises(SettingsError, match=rf"`documents` must be a list of .*, got one {type(one).__name__}; wr"):
        to_documents(one)


@pytest.mark.parametrize("item", [3, None, b"text", {"content": "text"}, {"text": 3}, {"text": "x", "metadata": "y"}])
def test_what_is_no_document_is_named_with_its_place(item: Any) -> None:
    with pytest.raises(SettingsError, match=r"documents\[1\] must be a LangChain Document, .* wrap it as Document\("):
        to_documents(["fine", item])


def test_metadata_that_is_no_json_becomes_its_text() -> None:
    class Rude:
        def __str__(self) -> str:
            raise RuntimeError

    cyclic: dict[str, Any] = {}
    cyclic["self"] = cyclic
    metadata = {"on": date(2026, 1, 2), "set": {1}, "nan": float("nan"), "rude": Rude(), "deep": cyclic, "ok": [1, {}]}
    (document,) = to_documents([Document("text", metadata=metadata)])
    cleaned = json.loads(json.dumps(document.metadata, allow_nan=False))
    assert cleaned["on"] == "2026-01-02"
    assert cleaned["set"] == "{1}"
    assert cleaned["nan"] is None
    assert cleaned["rude"] == "<Rude>"
    assert cleaned["ok"] == [1, {}]
    assert metadata["on"] == date(2026, 1, 2)  # the caller's own is untouched


def test_artifacts_are_documents_only_where_they_are_documents() -> None:
    page = Document("text", id="1")
    assert [d.id for d in from_artifact(page)] == ["1"]
    assert [d.id for d in from_artifact([page, Passage("more", "2"), "a string", {"text": "a dict"}, 3])] == ["1", "2"]
    assert from_artifact(None) == from_artifact("text") == from_artifact({"text": "text"}) == ()


@pytest.mark.parametrize(
    "block",
    [
        {"type": "text-plain", "text": "the text", "title": "T", "mime_type": "text/plain"},
        {"type": "text-plain", "base64": base64.b64encode(b"the text").decode(), "mime_type": "text/plain"},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "the text"}},
        {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "the text"}]}},
        {"type": "document", "source": {"type": "content", "content": "the text"}},
        {
            "type": "search_result",
            "source": "https://x.y",
            "title": "T",
            "content": [{"type": "text", "text": "the text"}],
        },
    ],
)
def test_blocks_of_every_dialect(block: dict[str, Any]) -> None:
    document = from_block(block, "here")
    assert document.text == "the text"
    assert document.metadata.get("title") in (None, "T")
    if block["type"] == "search_result":
        assert document.metadata["source"] == "https://x.y"


@pytest.mark.parametrize(
    "block",
    [
        {"type": "text-plain", "url": "https://x.y/z.txt", "mime_type": "text/plain"},
        {"type": "text-plain", "base64": "!", "mime_type": "text/plain"},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}},
        {"type": "document", "source": {"type": "url", "url": "https://x.y/z.pdf"}},
        {"type": "search_result", "source": "https://x.y", "title": "T", "content": []}
        | {"content": [{"type": "image"}]},
    ],
)
def test_blocks_whose_text_is_elsewhere_are_refused(block: dict[str, Any]) -> None:
    with pytest.raises(
        SettingsError, match=r"here is a '.*' block without text, got the keys .*; put the document's t"
    ):
        from_block(block, "here")
