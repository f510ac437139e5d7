"""Judge the demo's answers: which have the document's value, which changed, which got worse."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

from memograft.cli.document_status import nothing_memorized

if TYPE_CHECKING:
    from memograft.cli.document_status import DocumentStatus
    from memograft.memory.report import MemoryReport
    from memograft.passages.vector_store import Hit

Kind = Literal["agrees", "contradicts", "extends"]
KINDS: tuple[Kind, ...] = ("contradicts", "agrees", "extends")


@dataclass(frozen=True)
class Question:
    """A question of the demo.

    Attributes:
        question: the text.
        page: the file that answers it.
        kind: whether that page agrees with what tiny knows, contradicts it, or is about invented things.
        relation: of the fact, as in recipes/tiny/world.py.
        subject: of the fact.
        expected: the page's value.
        belief: tiny's own value, if the page contradicts it.
    """

    question: str
    page: str
    kind: Kind
    relation: str
    subject: str
    expected: str
    belief: str | None = None


@dataclass(frozen=True)
class Outcome:
    """A question with its three answers: without documents, with the documents in the prompt, and with them memorized.

    Seconds are the batch's time divided by its questions. `cut` describes documents that did not fit the window, and
    `statuses` which documents were memorized.
    """

    question: Question
    hits: tuple[Hit, ...]
    closed: str
    plain: str
    memorized: str
    memory: MemoryReport
    plain_seconds: float
    memorized_seconds: float
    cut: tuple[str, ...] = ()
    statuses: tuple[DocumentStatus, ...] = ()

    @property
    def right_closed(self) -> bool:
        """Whether the answer without the page has the page's value."""
        return says(self.closed, self.question.expected)

    @property
    def right_plain(self) -> bool:
        """Whether the plain answer has the page's value."""
        return says(self.plain, self.question.expected)

    @property
    def right_memorized(self) -> bool:
        """Whether the memorized answer has the page's value."""
        return says(self.memorized, self.question.expected)

    @property
    def changed(self) -> bool:
        """Whether the model gave its own belief, and after memorizing the document's value instead."""
        belief = self.question.belief
        return bool(belief and says(self.closed, belief) and self.right_memorized and not says(self.memorized, belief))

    @property
    def spoiled(self) -> bool:
        """Whether an answer was right, plainly or without documents, and memorizing made it wrong."""
        return (self.right_plain or self.right_closed) and not self.right_memorized

    def as_dict(self) -> dict[str, object]:
        """JSON values."""
        from memograft.cli.models import memory_json

        return {
            "question": self.question.question,
            "kind": self.question.kind,
            "page": self.question.page,
            "expected": self.question.expected,
            "belief": self.question.belief,
            "documents": [status.as_dict(hit.score) for status, hit in zip(self.statuses, self.hits, strict=True)],
            "closed_book": {"text": self.closed, "right": self.right_closed},
            "plain": {"text": self.plain, "right": self.right_plain, "seconds": self.plain_seconds},
            "memorized": {
                "text": self.memorized,
                "right": self.right_memorized,
                "seconds": self.memorized_seconds,
                "memory": memory_json(self.memory),
            },
            "changed_to_document": self.changed,
            "spoiled": self.spoiled,
            "cut": list(self.cut),
        }


class Right(TypedDict):
    """Number of answers with the page's value, for each method."""

    of: int
    closed_book: int
    plain: int
    memorized: int


class Summary(TypedDict):
    """Counts over all questions as JSON values; see `summary`."""

    questions: int
    right: Right
    right_by_kind: dict[Kind, Right]
    changed_to_document: int
    changed_only_by_memorizing: int
    right_both_ways: int
    wrong_then_right: int
    right_then_wrong: int
    wrong_both_ways: int
    spoiled: list[str]
    rolled_back: int
    nothing_memorized: int
    documents: int
    documents_memorized: int
    page_retrieved_first: int
    plain_seconds: float
    memorized_seconds: float


def says(answer: str, value: str) -> bool:
    """Whether an answer contains a value as whole words, ignoring case.

    Example:
        >>> says("The capital of France is Paris.", "paris"), says("The number is 141.", "41")
        (True, False)
    """
    return bool(re.search(rf"(?<!\w){re.escape(value)}(?!\w)", answer, re.IGNORECASE))


def summary(outcomes: Sequence[Outcome]) -> Summary:
    """Counts over all questions. The four counts by plain and memorized right or wrong add up to all questions."""
    return {
        "questions": len(outcomes),
        "right": _right(outcomes),
        "right_by_kind": {k: _right([o for o in outcomes if o.question.kind == k]) for k in KINDS},
        "changed_to_document": sum(o.changed for o in outcomes),
        "changed_only_by_memorizing": sum(o.changed and not o.right_plain for o in outcomes),
        "right_both_ways": sum(o.right_plain and o.right_memorized for o in outcomes),
        "wrong_then_right": sum(not o.right_plain and o.right_memorized for o in outcomes),
        "right_then_wrong": sum(o.right_plain and not o.right_memorized for o in outcomes),
        "wrong_both_ways": sum(not o.right_plain and not o.right_memorized for o in outcomes),
        "spoiled": [o.question.question for o in outcomes if o.spoiled],
        "rolled_back": sum(o.memory.rolled_back for o in outcomes),
        "nothing_memorized": sum(bool(nothing_memorized(o.memory)) for o in outcomes),
        "documents": sum(len(o.statuses) for o in outcomes),
        "documents_memorized": sum(status.memorized for o in outcomes for status in o.statuses),
        "page_retrieved_first": sum(_first(o) == o.question.page for o in outcomes),
        "plain_seconds": sum(o.plain_seconds for o in outcomes),
        "memorized_seconds": sum(o.memorized_seconds for o in outcomes),
    }


def _right(outcomes: Sequence[Outcome]) -> Right:
    return {
        "of": len(outcomes),
        "closed_book": sum(o.right_closed for o in outcomes),
        "plain": sum(o.right_plain for o in outcomes),
        "memorized": sum(o.right_memorized for o in outcomes),
    }


def _first(outcome: Outcome) -> object:
    return outcome.hits[0].document.metadata.get("source") if outcome.hits else None
