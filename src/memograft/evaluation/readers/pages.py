"""`Pages`: the pages of a file, from which a question gets those of other questions."""

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
    asked: set[str] = field(default_factory=set)  # the questions whose page it is


class Pages:
    """The own pages of all questions, tuning and test apart: a question never gets a page from the other split."""

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
        """Other questions' pages, `count` of them or as many as there are, that hold none of its answers.

        They are of other articles too, as far as pages have titles. `why` makes two uses for one question differ.
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
    """The text's words in lower case, one space around each, so that whole words can be looked for."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def holds(text: str, answer: str) -> bool:
    """Whether the words of a text, see `words`, hold those of an answer. No words are held by nothing."""
    return bool(answer.strip()) and answer in text


def _title(page: Document) -> str:
    return str(page.metadata.get("title", ""))
