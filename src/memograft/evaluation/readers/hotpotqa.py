"""HotpotQA (arXiv 1809.09600), distractor setting: ten paragraphs, two of which are needed for the answer.

The official file, {"_id", "question", "answer", "type", "context": [[title, [sentence, ..]], ..]}, or the hub's rows,
{"id", .., "context": {"title": [..], "sentences": [[..], ..]}}. Right answers are also counted by `type`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from memograft.documents import Document
from memograft.evaluation.entry import Entry, named
from memograft.evaluation.readers.asked import Asked, document, skip_without

__all__ = ["read", "recognises"]


def recognises(entry: Entry) -> bool:
    """Whether the entry has this format."""
    return entry.has("question", "context") and not isinstance(entry.fields["context"], str)


def read(entries: Iterable[Entry]) -> Iterator[Asked]:
    """The questions of the entries."""
    for entry in entries:
        answers = entry.texts("answer") if entry.has("answer") else ()  # the test set has none
        yield Asked(
            id=str(entry.fields.get("_id", entry.fields.get("id", entry.place))),
            question=entry.text("question"),
            answers=answers,
            pages=_pages(entry),
            kind=entry.text("type", default=""),
            skip=skip_without(answers),
        )


def _pages(entry: Entry) -> tuple[Document, ...]:
    value = entry.value("context")
    try:
        if isinstance(value, dict):
            value = list(zip(value["title"], value["sentences"], strict=True))
        return tuple(document(" ".join(s.strip() for s in sentences), title) for title, sentences in value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        entry.refuse(f"`context` must be a list of [title, sentences], got {named(value)}", "see the docs", error)
