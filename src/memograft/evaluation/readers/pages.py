"""`Pages`: the pages of a file, for questions that need pages of other questions."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from memograft.documents import Document
from memograft.evaluation.readers.asked import Asked
from memograft.evaluation.split import digest, place, split_of, squeezed

__all__ = ["Pages", "holds", "words"]

_WORD = re.compile(r"[^\W_]+")


@dataclass
class _Page:
    document: Document
    words: str
    asked: set[str] = field(default_factory=set)  # the questions that it belongs to


class Pages:
    """The pages of all questions, per split: a question never gets a page from the other split."""

    def __init__(self, asked: Iterable[Asked]) -> None:
        found: dict[str, dict[str, _Page]] = defaultdict(dict)
        for question in asked:
            of_split = found[split_of(question.asks)]
            for page in question.pages:
                if page.text not in of_split:
                    of_split[page.text] = _Page(page, words(page.text))
                of_split[page.text].asked.add(squeezed(question.asks))
        self._pages = {
            name: [pages[text] for text in sorted(pages, key=lambda text: (digest(text), text))]
            for name, pages in found.items()
        }

    def others(self, asked: Asked, count: int, why: str) -> tuple[Document, ...]:
        """Up to `count` pages of other questions that contain none of its answers.

        If pages have titles, they are also of other articles. Different `why` give different pages for the same
        question.
        """
        pages = self._pages.get(split_of(asked.asks), [])
        chosen: list[Document] = []
        own, titles = squeezed(asked.asks), {_title(page) for page in asked.pages} - {""}
        answers = {words(answer) for answer in (*asked.answers, *asked.substitutes)}
        start = place(len(pages), why, asked.asks) if pages else 0
        for page in (*pages[start:], *pages[:start]):
            if len(chosen) == count:
                break
            if own in page.asked or _title(page.document) in titles:
                continue
            if not any(holds(page.words, answer) for answer in answers):
                chosen.append(page.document)
        return tuple(chosen)


def words(text: str) -> str:
    """The text's words in lower case, each between single spaces, so that whole words can be searched."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def holds(text: str, answer: str) -> bool:
    """Whether the words of a text (see `words`) contain those of an answer; False for an empty answer."""
    return bool(answer.strip()) and answer in text


def _title(page: Document) -> str:
    return str(page.metadata.get("title", ""))
