"""The page of one question: the answer of each method with its datastore references, and what was memorized."""

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
    """The answer of one method, and the seconds it took."""

    name: str
    references: References
    seconds: float


@dataclass(frozen=True)
class Memorized:
    """The documents of the prompt, and what memorizing did.

    `note` states why nothing was memorized, or why it was rolled back. `tokens` is empty if nothing was memorized, or
    if the memory was read from a folder.
    """

    documents: tuple[Retrieved, ...] = ()
    tokens: tuple[Token, ...] = ()
    loss_before: float = 0.0
    loss_after: float = 0.0
    note: str = ""


def question_page(question: str, ways: Sequence[Way], memorized: Memorized, *, model: str) -> str:
    """The page as HTML.

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
