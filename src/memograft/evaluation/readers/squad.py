"""SQuAD 1.1 and 2.0 (arXiv 1606.05250, 1806.03822): questions about paragraphs of Wikipedia.

The official file, {"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text"}],
"is_impossible"}]}]}]}, or the hub's rows, {"id", "title", "context", "question", "answers": {"text": [..]}}. Questions
of 2.0 that their paragraph does not answer are skipped: there is nothing that a right answer holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from memograft.evaluation.readers.asked import Asked, document
from memograft.evaluation.record import Record, named

__all__ = ["IMPOSSIBLE", "read", "recognises"]

IMPOSSIBLE = "the page does not answer the question"


def recognises(record: Record) -> bool:
    """Whether the record looks like this."""
    return record.has("paragraphs") or (record.has("context") and isinstance(record.fields.get("answers"), dict))


def read(records: Iterable[Record]) -> Iterator[Asked]:
    """The questions of the records."""
    for record in records:
        if not record.has("paragraphs"):
            yield _asked(record, record.text("context"), record.text("title", default=""))
            continue
        title = record.text("title", default="").replace("_", " ")
        for paragraph in record.inner("paragraphs"):
            context = paragraph.text("context")
            for question in paragraph.inner("qas"):
                yield _asked(question, context, title)


def _asked(record: Record, context: str, title: str) -> Asked:
    answers = _answers(record)
    return Asked(
        id=str(record.fields.get("id", record.place)),
        question=record.text("question"),
        answers=answers,
        pages=(document(context.strip(), title),),
        skip="" if answers else IMPOSSIBLE,
    )


def _answers(record: Record) -> tuple[str, ...]:
    """Of the file a list of {"text"}, of the hub's rows {"text": list}."""
    value: Any = record.value("answers")
    if isinstance(value, dict):
        return Record(record.file, f"{record.place}, answers", value).texts("text")
    if not isinstance(value, list):
        record.refuse(f"`answers` must be a list, got {named(value)}", 'write [{"text": ...}, ...]')
    return tuple(dict.fromkeys(answer.text("text").strip() for answer in record.inner("answers")))
