"""`Asked`: a question of a public set as its reader gives it, before it is decided what stands in the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memograft.documents import Document
from memograft.evaluation.items import Task
from memograft.evaluation.split import digest, squeezed

__all__ = ["Asked", "document", "skip_without"]


@dataclass(frozen=True)
class Asked:
    """One question.

    Attributes:
        id: as the file has it, or the place in the file.
        question: as the file has it.
        answers: what its own pages say; any counts.
        pages: its own pages, in their order; () if the file has none.
        swapped: the same page with another answer in it; None if the file has none.
        substitutes: the answers of that page.
        belief: what the model is thought to say by itself.
        kind: what right answers are also counted by.
        task: as in `Item`.
        key: what split and order are decided by, and what items are clustered by; "" for the question.
        skip: why it cannot be asked; "" if it can.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    pages: tuple[Document, ...] = ()
    swapped: Document | None = None
    substitutes: tuple[str, ...] = ()
    belief: str = ""
    kind: str = ""
    task: Task = "qa"
    key: str = ""
    skip: str = ""

    @property
    def asks(self) -> str:
        """What split, order and cluster are decided by."""
        return self.key or self.question

    @property
    def group(self) -> str:
        """Of `Item.group`."""
        return squeezed(self.question) if not self.key else digest(self.key)[:16]

    @property
    def query(self) -> str:
        """The question with a question mark, which those typed into a search engine lack."""
        bare = self.question.strip()
        return bare if self.task != "qa" or bare.endswith(("?", ".", "!", '"')) else bare + "?"

    @property
    def order(self) -> tuple[str, str]:
        """Sorts by hash of the question, then of all that tells apart those who share it."""
        swapped = self.swapped.text if self.swapped else ""
        return digest(self.asks), digest(*(page.text for page in self.pages), swapped, *self.substitutes, *self.answers)


def document(text: str, title: str = "") -> Document:
    """A page, with its title beside it, which the model is not shown."""
    about: Mapping[str, object] = {"title": title} if title else {}
    return Document(text, metadata=about)


def skip_without(answers: Sequence[str]) -> str:
    """Why a question with these answers cannot be asked."""
    return "" if answers else "no answer is given"
