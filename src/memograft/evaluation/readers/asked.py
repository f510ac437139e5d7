"""`Asked`: a question of a public set as its reader returns it, before a context is chosen."""

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
        id: from the file, or the place in the file.
        question: from the file.
        answers: the answers according to its own pages; any is right.
        pages: its own pages, in order; () if the file has none.
        swapped: the same page with another answer in it; None if the file has none.
        substitutes: the answers of that page.
        belief: what the model presumably answers without documents.
        kind: right answers are also counted per kind.
        task: as in `Item`.
        key: determines split, order and cluster; "" for the question.
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
        """The text that determines split, order and cluster."""
        return self.key or self.question

    @property
    def group(self) -> str:
        """The value of `Item.group`."""
        return squeezed(self.question) if not self.key else digest(self.key)[:16]

    @property
    def query(self) -> str:
        """The question with a question mark, which search engine queries lack."""
        bare = self.question.strip()
        return bare if self.task != "qa" or bare.endswith(("?", ".", "!", '"')) else bare + "?"

    @property
    def order(self) -> tuple[str, str]:
        """Sort key: hash of the question, then of everything that distinguishes entries with the same question."""
        swapped = self.swapped.text if self.swapped else ""
        return digest(self.asks), digest(*(page.text for page in self.pages), swapped, *self.substitutes, *self.answers)


def document(text: str, title: str = "") -> Document:
    """A page with its title as metadata, which the model does not see."""
    about: Mapping[str, object] = {"title": title} if title else {}
    return Document(text, metadata=about)


def skip_without(answers: Sequence[str]) -> str:
    """The reason why a question with these answers cannot be asked, or ""."""
    return "" if answers else "no answer is given"
