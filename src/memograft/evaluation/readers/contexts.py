"""What stands in the prompt beside a question: the sets that a public set of questions is asked as.

    contradicts  its page with another answer in it; that one is right, and what the page really says is the belief
    agrees       its own page
    irrelevant   another question's page, which does not hold the answer; right is what its own page says
    one of five  its page, the one with another answer if there is one, among four other questions' pages
    disagree     its page as it is and with another answer, in either order; the first one's answer is right
    no document  nothing

MemoTrap's instructions contradict what the model would say, so they are a "contradicts"; summaries are an "agrees".
All is chosen by hashes of the questions and the pages: neither the order of a file nor a random state matters.
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

__all__ = ["AMBIGUOUS", "CONTEXTS", "NONE_LEFT", "NO_SWAP", "SWAPPED", "Unfit", "fits", "item"]

NONE_LEFT = "too few other questions' pages without the answer"
NO_SWAP = "no page with another answer is given"
AMBIGUOUS = "one of the two answers holds the other"


SWAPPED = ("contradicts", "one of five", "disagree")  # contexts that show the page with another answer, if there is one


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
        other=chosen.other,
        kind=chosen.kind or asked.kind,
        group=asked.group,
        query=asked.query,
        task=asked.task,
        protocol=protocol.name,
    )


def fits(asked: Asked, context: str) -> bool:
    """Whether the question has what this context is made of."""
    if asked.task != "qa":
        return context == {"choice": "contradicts", "summary": "agrees"}[asked.task]
    if context in ("contradicts", "disagree"):
        return asked.swapped is not None
    return context == "no document" or (bool(asked.pages) and (context != "one of five" or len(asked.pages) == 1))


def _contradicts(asked: Asked, _pages: Pages) -> Chosen:
    if asked.task == "choice":  # its own page is what contradicts the habit
        return Chosen(asked.pages, asked.answers, asked.belief)
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
    original, swapped, page = asked.answers, asked.substitutes, _swapped_page(asked)
    for one, two in product(map(words, original), map(words, swapped)):
        if holds(one, two) or holds(two, one):
            raise Unfit(AMBIGUOUS)
    if place(2, "disagree", asked.asks):
        return Chosen((page, *asked.pages), swapped, asked.belief, original[0], "substitute first")
    return Chosen((*asked.pages, page), original, asked.belief, swapped[0], "original first")


def _no_document(asked: Asked, _pages: Pages) -> Chosen:
    return Chosen((), asked.answers)


def _swapped(asked: Asked, others: tuple[Document, ...]) -> Chosen:
    """The page with another answer, alone or among others."""
    return Chosen(_among(_swapped_page(asked), others, asked), asked.substitutes, asked.belief)


def _swapped_page(asked: Asked) -> Document:
    if asked.swapped is None:  # its file has swaps, but not for this question
        raise Unfit(NO_SWAP)
    return asked.swapped


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
