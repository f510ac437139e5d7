"""Documents in LangChain's forms."""

from __future__ import annotations

from langchain_core.documents import Document
from memograft import Document as Passage

from langchain_memograft._documents import from_artifact


def test_artifacts_are_documents_only_where_they_are_documents() -> None:
    page = Document("text", id="1")
    assert [d.id for d in from_artifact(page)] == ["1"]
    assert [d.id for d in from_artifact([page, Passage("more", "2"), "a string", {"text": "a dict"}, 3])] == ["1", "2"]
    assert from_artifact(None) == from_artifact("text") == from_artifact({"text": "text"}) == ()
