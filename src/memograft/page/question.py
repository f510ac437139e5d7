"""The page of one question: each way's answer with what a datastore moved, beside what was memorized for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memograft.page.memorized import Retrieved, Token
from memograft.page.references import References
from memograft.page.template import filled

__all__ = ["Memorized", "Way", "question_page"]


@dataclass(frozen=True)
class Way:
    """One way's answer, and the seconds it took."""

    name: str
    references: References
    seconds: float


@dataclass(frozen=True)
class Memorized:
    """The documents of the prompt, and what memorizing did to those that were memorized.

    `note` says in a sentence why nothing was, or why it was undone; `tokens` are empty where nothing was, or where a
    memory came from a folder.
    """

    documents: tuple[Retrieved, ...] = ()
    tokens: tuple[Token, ...] = ()
    loss_before: float = 0.0
    loss_after: float = 0.0
    note: str = ""


def question_page(question: str, ways: Sequence[Way], memorized: Memorized, *, model: str) -> str:
    """The page as text.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    return filled(
        "question.html.jinja",
        question=question,
        ways=ways,
        memorized=memorized,
        model=Path(model).name or model,
        steered=any(way.references.share is not None for way in ways),
    )
