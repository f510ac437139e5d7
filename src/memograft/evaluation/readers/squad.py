"""SQuAD 1.1 and 2.0 (arXiv 1606.05250, 1806.03822): questions about paragraphs of Wikipedia.

The official file, {"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text"}],
"is_impossible"}]}]}]}, or the hub's rows, {"id", "title", "context", "question", "answers": {"text": [..]}}. Questions
of 2.0 that their paragraph does not answer are skipped, because they have no right answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from memograft.evaluation.entry import Entry, named
from memograft.evaluation.readers.asked import Asked, document

__all__ = ["IMPOSSIBLE", "read", "recognises"]

IMPOSSIBLE = "the page does not answer the question"


def recognises(entry: Entry) -> bool:
    """Whether the entry has this format."""
    return entry.has("paragraphs") or (entry.has("context") and isinstance(entry.fields.get("answers"), dict))


def read(entries: Iterable[Entry]) -> Iterator[Asked]:
    """The questions of the entries."""
    for entry in entries:
        if not entry.has("paragraphs"):
            yield _asked(entry, entry.text("context"), entry.text("title", default=""))
            continue
        title = entry.text("title", default="").replace("_", " ")
        for paragraph in entry.inner("paragraphs"):
            context = paragraph.text("context")
            for question in paragraph.inner("qas"):
                yield _asked(question, context, title)


def _asked(entry: Entry, context: str, title: str) -> Asked:
    answers = _answers(entry)
    return Asked(
        id=str(entry.fields.get("id", entry.place)),
        question=entry.text("question"),
        answers=answers,
        pages=(document(context.strip(), title),),
        skip="" if answers else IMPOSSIBLE,
    )


def _answers(entry: Entry) -> tuple[str, ...]:
    """The answers: in the file a list of {"text"}, in the hub's rows {"text": list}."""
    value = entry.value("answers")
    if isinstance(value, dict):
        return Entry(entry.file, f"{entry.place}, answers", value).texts("text")
    if not isinstance(value, list):
        entry.refuse(f"`answers` must be a list, got {named(value)}", 'write [{"text": ...}, ...]')
    return tuple(dict.fromkeys(answer.text("text").strip() for answer in entry.inner("answers")))
