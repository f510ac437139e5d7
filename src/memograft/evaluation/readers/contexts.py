"""Contexts: which documents are in the prompt with a question. Each context becomes a set.

  contradicts  its page with another answer in it, which is right; the answer of the original page is the belief
  agrees       its own page
  irrelevant   another question's page, which does not contain the answer; the answer of its own page is right
  one of five  its page, the one with another answer if there is one, among four other questions' pages
  disagree     its page as it is and with another answer, in either order; the first one's answer is right
  no document  nothing

MemoTrap's instructions contradict what the model would say, so they are a "contradicts"; summaries are an "agrees".
All choices use hashes of questions and pages, so they depend neither on a file's order nor on a random state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import NamedTuple

from memograft.documents import Document
from memograft.evaluation.items import Item
from memograft.evaluation.protocol import Protocol
from memograft.evaluation.readers.asked import Asked
from memograft.evaluation.readers.pages import Pages, holds, words
from memograft.evaluation.split import place

__all__ = ["AMBIGUOUS", "CONTEXTS", "LACKS", "NONE_LEFT", "SWAPPED", "Unfit", "fits", "item"]

NONE_LEFT = "too few other questions' pages without the answer"
LACKS = "its entry has no page for this"
AMBIGUOUS = "one of the two answers holds the other"


SWAPPED = ("contradicts", "one of five", "disagree")  # contexts with the swapped page, if there is one


class Chosen(NamedTuple):
    """The parts of an `Item` that a context determines."""

    documents: tuple[Document, ...]
    answers: tuple[str, ...]
    other: str = ""
    kind: str = ""


class Unfit(Exception):
    """This question cannot be asked in this context; the text is the reason."""


def item(asked: Asked, context: str, pages: Pages, protocol: Protocol) -> Item:
    """The question in this context.

    Raises:
        Unfit: it cannot be asked in this context.
    """
    if not fits(asked, context):
        raise Unfit(LACKS)
    chosen = CONTEXTS[context](asked, pages)
    return Item(
        id=asked.id,
        set=context,
        question=protocol.wrap(asked.query, asked.task),
        documents=chosen.documents,
        answers=chosen.answers,
        belief=asked.belief,
        other=chosen.other,
        kind=chosen.kind or asked.kind,
        group=asked.group,
        query=asked.query,
        task=asked.task,
        protocol=protocol.name,
    )


def fits(asked: Asked, context: str) -> bool:
    """Whether the question has what this context needs."""
    if asked.task != "qa":
        return context == {"choice": "contradicts", "summary": "agrees"}[asked.task]
    if context in ("contradicts", "disagree"):
        return asked.swapped is not None
    return context == "no document" or (bool(asked.pages) and (context != "one of five" or len(asked.pages) == 1))


def _contradicts(asked: Asked, _pages: Pages) -> Chosen:
    return _among((), asked)


def _agrees(asked: Asked, _pages: Pages) -> Chosen:
    return Chosen(asked.pages, asked.answers)


def _irrelevant(asked: Asked, pages: Pages) -> Chosen:
    return Chosen(_others(asked, pages, len(asked.pages), "irrelevant"), asked.answers)


def _one_of_five(asked: Asked, pages: Pages) -> Chosen:
    return _among(_others(asked, pages, 4, "one of five"), asked)


def _disagree(asked: Asked, _pages: Pages) -> Chosen:
    original, swapped = asked.answers, asked.substitutes
    for one, two in product(map(words, original), map(words, swapped)):
        if holds(one, two) or holds(two, one):
            raise Unfit(AMBIGUOUS)
    if place(2, "disagree", asked.asks):
        return Chosen((_shown(asked), *asked.pages), swapped, original[0], "substitute first")
    return Chosen((*asked.pages, _shown(asked)), original, swapped[0], "original first")


def _no_document(asked: Asked, _pages: Pages) -> Chosen:
    return Chosen((), asked.answers)


def _shown(asked: Asked) -> Document:
    """The page with another answer, if there is one; else its own page, which for MemoTrap is the contradicting one."""
    return asked.swapped or asked.pages[0]


def _others(asked: Asked, pages: Pages, count: int, why: str) -> tuple[Document, ...]:
    found = pages.others(asked, count, why)
    if len(found) < count:
        raise Unfit(NONE_LEFT)
    return found


def _among(others: tuple[Document, ...], asked: Asked) -> Chosen:
    at = place(len(others) + 1, "place", asked.asks)
    documents = (*others[:at], _shown(asked), *others[at:])
    return Chosen(documents, asked.substitutes or asked.answers)


CONTEXTS: Mapping[str, Callable[[Asked, Pages], Chosen]] = {
    "contradicts": _contradicts,
    "agrees": _agrees,
    "irrelevant": _irrelevant,
    "one of five": _one_of_five,
    "disagree": _disagree,
    "no document": _no_document,
}
