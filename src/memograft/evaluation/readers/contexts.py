"""What stands in the prompt beside a question: the sets that a public set of questions is asked as.

    contradicts  its page with another answer in it; that one is right, and what the page really says is the belief
    agrees       its own page
    irrelevant   another question's page, which does not hold the answer; right is what its own page says
    one of five  its page, the one with another answer if there is one, among four other questions' pages
    disagree     its page as it is and with another answer, in either order; the first one's answer is right
    no document  nothing

All is chosen by hashes of the questions and the pages: neither the order of a file nor a random state matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from memograft.documents import Document
from memograft.evaluation.items import Item
from memograft.evaluation.protocol import Protocol
from memograft.evaluation.readers.asked import Asked
from memograft.evaluation.readers.pages import Pages, holds, words
from memograft.evaluation.split import place, squeezed

__all__ = ["AMBIGUOUS", "CONTEXTS", "NONE_LEFT", "Unfit", "fits", "item"]

NONE_LEFT = "too few other questions' pages without the answer"
AMBIGUOUS = "one of the two answers holds the other"


class Chosen(NamedTuple):
    """The parts of an item that a context decides; they mean what they mean there."""

    documents: tuple[Document, ...]
    answers: tuple[str, ...]
    belief: str = ""
    other: str = ""
    kind: str = ""


class Unfit(Exception):
    """This question cannot be asked so; says why."""


def item(asked: Asked, context: str, pages: Pages, protocol: Protocol) -> Item:
    """The question in this context.

    Raises:
        Unfit: it cannot be asked so.
    """
    chosen = CONTEXTS[context](asked, pages)
    return Item(
        id=asked.id,
        set=context,
        question=protocol.wrap(asked.query, asked.task),
        documents=chosen.documents,
        answers=chosen.answers,
        belief=chosen.belief,
        other=chosen.other or asked.other,
        kind=chosen.kind or asked.kind,
        group=squeezed(asked.asks),
        query=asked.query,
        task=asked.task,
        protocol=protocol.name,
    )


def fits(asked: Asked, context: str) -> bool:
    """Whether the question has what this context is made of."""
    if context in ("contradicts", "disagree"):
        return asked.swapped is not None
    return context == "no document" or (bool(asked.pages) and (context != "one of five" or len(asked.pages) == 1))


def _contradicts(asked: Asked, _pages: Pages) -> Chosen:
    return _swapped(asked, ())


def _agrees(asked: Asked, _pages: Pages) -> Chosen:
    return Chosen(asked.pages, asked.answers)


def _irrelevant(asked: Asked, pages: Pages) -> Chosen:
    return Chosen(_others(asked, pages, len(asked.pages), "irrelevant"), asked.answers)


def _one_of_five(asked: Asked, pages: Pages) -> Chosen:
    others = _others(asked, pages, 4, "one of five")
    if asked.swapped:
        return _swapped(asked, others)
    return Chosen(_among(asked.pages[0], others, asked), asked.answers)


def _disagree(asked: Asked, _pages: Pages) -> Chosen:
    original, swapped = asked.answers, asked.substitutes
    for one, two in ((o, s) for o in map(words, original) for s in map(words, swapped)):
        if holds(one, two) or holds(two, one):
            raise Unfit(AMBIGUOUS)
    documents = (*asked.pages, *((asked.swapped,) if asked.swapped else ()))
    if place(2, "disagree", asked.asks):
        return Chosen(documents[::-1], swapped, asked.belief, original[0], "substitute first")
    return Chosen(documents, original, asked.belief, swapped[0], "original first")


def _no_document(asked: Asked, _pages: Pages) -> Chosen:
    return Chosen((), asked.answers)


def _swapped(asked: Asked, others: tuple[Document, ...]) -> Chosen:
    """The page with another answer, alone or among others."""
    page = (asked.swapped,) if asked.swapped else ()
    return Chosen(_among(page[0], others, asked) if others else page, asked.substitutes, asked.belief)


def _others(asked: Asked, pages: Pages, count: int, why: str) -> tuple[Document, ...]:
    found = pages.others(asked, count, why)
    if len(found) < count:
        raise Unfit(NONE_LEFT)
    return found


def _among(page: Document, others: tuple[Document, ...], asked: Asked) -> tuple[Document, ...]:
    at = place(len(others) + 1, "place", asked.asks)
    return (*others[:at], page, *others[at:])


CONTEXTS: Mapping[str, Callable[[Asked, Pages], Chosen]] = {
    "contradicts": _contradicts,
    "agrees": _agrees,
    "irrelevant": _irrelevant,
    "one of five": _one_of_five,
    "disagree": _disagree,
    "no document": _no_document,
}
