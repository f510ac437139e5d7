"""The demo's page: every question with three answers, and its context tokens before and after memorizing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memograft.page.memorized import Retrieved, Token
from memograft.page.template import filled

__all__ = ["Card", "Reply", "demo_page"]


@dataclass(frozen=True)
class Reply:
    """The answer of one method, and whether it has the document's value."""

    way: str
    text: str
    right: bool


@dataclass(frozen=True)
class Card:
    """A question with its answers and its context tokens."""

    question: str
    kind: str
    expected: str
    documents: tuple[Retrieved, ...]
    answers: tuple[Reply, ...]
    changed: bool
    spoiled: bool
    loss_before: float
    loss_after: float
    seconds: float
    note: str
    tokens: tuple[Token, ...]


def demo_page(cards: Sequence[Card], counts: Mapping[str, object], *, model: str) -> str:
    """The page as HTML. Questions whose answer improved come first, then those whose answer got worse.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    ordered = sorted(cards, key=lambda card: (not card.changed, not card.spoiled))
    return filled("demo.html.jinja", cards=ordered, counts=counts, model=Path(model).name or model)
