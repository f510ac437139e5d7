"""Natural Questions as published by Google: whole Wikipedia pages as tokens, with annotated spans.

    simplified   {"question_text", "document_text", "annotations": [{"long_answer", "short_answers": [..]}]}
    full         the same with "document_tokens": [{"token", "html_token"}] in place of the text
    the hub's    {"question": {"text"}, "document": {"tokens": {"token": [..], "is_html": [..]}}, "annotations": {..}}

The page is the long answer of the first annotator who also marked short answers; all annotators' short answers are
right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from memograft.documents import Document
from memograft.evaluation.entry import Entry
from memograft.evaluation.readers.asked import Asked, document, skip_without
from memograft.evaluation.readers.nqswap import TABLE, is_table, without_tags

__all__ = ["read", "recognises"]


def recognises(entry: Entry) -> bool:
    """Whether the entry has this format."""
    return entry.has("annotations") and (entry.has("question_text") or entry.has("question", "document"))


def read(entries: Iterable[Entry]) -> Iterator[Asked]:
    """The questions of the entries."""
    for entry in entries:
        try:
            yield _asked(entry)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            entry.refuse(
                f"an annotated page of Natural Questions is not as published ({type(error).__name__}: {error})",
                "download it again, or leave it out",
                error,
            )


def _asked(entry: Entry) -> Asked:
    tokens, title = _tokens(entry.fields)
    answers: dict[str, None] = {}
    page = ""
    for long, shorts in _annotations(entry.fields["annotations"]):
        found = [without_tags(_span(tokens, start, end)) for start, end in shorts]
        answers |= dict.fromkeys(answer for answer in found if answer)
        if any(found) and not page and long[0] >= 0:
            page = _span(tokens, *long)
    question = entry.fields.get("question_text") or entry.fields["question"]["text"]
    pages: tuple[Document, ...] = (document(without_tags(page), title),)
    return Asked(
        id=str(entry.fields.get("example_id", entry.fields.get("id", entry.place))),
        question=str(question),
        answers=tuple(answers),
        pages=pages,
        skip=skip_without(tuple(answers)) or (TABLE if is_table(page) else "" if page else "no long answer is given"),
    )


def _tokens(fields: Mapping[str, Any]) -> tuple[list[str], str]:
    """The page's tokens, including tags, and its title."""
    if "document_text" in fields:
        return str(fields["document_text"]).split(" "), str(fields.get("document_title", ""))
    if "document_tokens" in fields:
        return [str(token["token"]) for token in fields["document_tokens"]], str(fields.get("document_title", ""))
    document = fields["document"]
    return list(document["tokens"]["token"]), str(document.get("title", ""))


def _annotations(value: Any) -> Iterator[tuple[tuple[int, int], list[tuple[int, int]]]]:
    """(long answer, short answers) of each annotator, as [start, end) tokens. On the hub it is an object of lists."""
    if isinstance(value, Mapping):
        value = [
            {"long_answer": long, "short_answers": short}
            for long, short in zip(value["long_answer"], value["short_answers"], strict=True)
        ]
    for annotation in value:
        shorts = annotation["short_answers"]
        if isinstance(shorts, Mapping):
            pairs = list(zip(shorts["start_token"], shorts["end_token"], strict=True))
        else:
            pairs = [(short["start_token"], short["end_token"]) for short in shorts]
        long = annotation["long_answer"]
        yield (long["start_token"], long["end_token"]), pairs


def _span(tokens: list[str], start: int, end: int) -> str:
    return " ".join(tokens[start:end])
