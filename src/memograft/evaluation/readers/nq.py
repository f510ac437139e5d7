"""Natural Questions in formats of other projects: question, answers and usually a page.

    MRQA (arXiv 1910.09753)            {"context", "qas": [{"qid", "question", "answers": [..]}]} after a header line
    MRQA on the hub, and FastMem       {"question" or "input", "context", "answers" or "answer"}
    Lost in the Middle, DPR            {"question", "answers", "ctxs" or "positive_ctxs": [{"title", "text", "isgold"}]}
    NQ-open (arXiv 1906.00300)         {"question", "answer": [..]}, which has no page: only "no document"

If there are several retrieved pages, the annotated one ("isgold") is used, else the first that contains an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from memograft.documents import Document
from memograft.evaluation.entry import Entry
from memograft.evaluation.readers.asked import Asked, document, skip_without
from memograft.evaluation.readers.nqswap import TABLE, is_table, without_tags

__all__ = ["NO_PAGE", "read", "recognises"]

NO_PAGE = "no page holds the answer"
_MARK = re.compile(r"\[(?:TLE|PAR|SEP|DOC)\]")  # MRQA's marks between the parts of a page


def recognises(entry: Entry) -> bool:
    """Whether the entry has this format."""
    if "header" in entry.fields or entry.has("qas") or entry.has("ctxs") or entry.has("positive_ctxs"):
        return True
    context, answers = entry.fields.get("context"), entry.fields.get("answers", entry.fields.get("answer"))
    if isinstance(context, str):
        return not entry.has("sub_context") and isinstance(answers, list | str)
    return context is None and not entry.has("documents") and isinstance(entry.fields.get("answer"), list)


def read(entries: Iterable[Entry]) -> Iterator[Asked]:
    """The questions of the entries."""
    for entry in entries:
        if entry.has("header"):
            continue
        if entry.has("qas"):
            for question in entry.inner("qas"):
                yield _on_page(question, entry.text("context"))
        elif entry.has("ctxs") or entry.has("positive_ctxs"):
            yield _retrieved(entry)
        elif entry.has("context"):
            yield _on_page(entry, entry.text("context"))
        else:
            yield _asked(entry, ())


def _on_page(entry: Entry, context: str) -> Asked:
    page = document(without_tags(_MARK.sub(" ", context)), entry.text("title", default=""))
    return _asked(entry, (page,), TABLE if is_table(context) else "")


def _retrieved(entry: Entry) -> Asked:
    pages = entry.inner("ctxs" if entry.has("ctxs") else "positive_ctxs")
    good = [p for p in pages if p.fields.get("isgold")] or [
        p for p in pages if p.fields.get("hasanswer", p.fields.get("has_answer", entry.has("positive_ctxs")))
    ]
    own = tuple(document(page.text("text").strip(), page.text("title", default="")) for page in good[:1])
    return _asked(entry, own, "" if own else NO_PAGE)


def _asked(entry: Entry, pages: tuple[Document, ...], skip: str = "") -> Asked:
    answers = entry.texts("answers", "answer")
    return Asked(
        id=str(next((entry.fields[name] for name in ("id", "qid", "key") if name in entry.fields), entry.place)),
        question=entry.text("question", "input"),
        answers=answers,
        pages=pages,
        skip=skip or skip_without(answers),
    )
