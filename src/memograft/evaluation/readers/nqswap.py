"""NQ-SWAP (arXiv 2109.05052): a Wikipedia page, its answer, and the same page with the answer replaced.

    {"question", "org_context", "org_answer": [..], "sub_context", "sub_answer": [..]}

or, in FastMem's repository, {"input", "context", "answer", "sub_context", "sub_answer"}. A question may have several
swaps. Pages are those of Natural Questions, including tags.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from memograft.evaluation.entry import Entry
from memograft.evaluation.readers.asked import Asked, document, skip_without

__all__ = ["TABLE", "is_table", "read", "recognises", "without_tags"]

TABLE = "the page is a table"
_TABLE = re.compile(r"<(?:Table|Tr|Th|Td)\b", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9]*>")


def recognises(entry: Entry) -> bool:
    """Whether the entry has this format."""
    return entry.has("sub_context")


def read(entries: Iterable[Entry]) -> Iterator[Asked]:
    """The questions of the entries."""
    for entry in entries:
        original, swapped = entry.text("org_context", "context"), entry.text("sub_context")
        answers, substitutes = entry.texts("org_answer", "answer"), entry.texts("sub_answer")
        yield Asked(
            id=str(entry.fields.get("id", entry.place)),
            question=entry.text("question", "input"),
            answers=answers,
            pages=(document(without_tags(original)),),
            swapped=document(without_tags(swapped)),
            substitutes=substitutes,
            belief=next(iter(answers), ""),
            skip=TABLE if is_table(original) or is_table(swapped) else skip_without(answers and substitutes),
        )


def is_table(page: str) -> bool:
    """Whether a page of Natural Questions is a table, whose cells do not form a readable text."""
    return _TABLE.search(page) is not None


def without_tags(page: str) -> str:
    """The text of a page of Natural Questions."""
    return " ".join(_TAG.sub(" ", page).split())
