"""The status of each document of an answer: whether it was memorized, its relevance, and why it was not memorized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memograft.cli.models import document_json
from memograft.documents import Document

if TYPE_CHECKING:
    from memograft.memory.report import MemoryReport


@dataclass(frozen=True)
class DocumentStatus:
    """The status of one document.

    Attributes:
        document: the document.
        relevance: to the question; None if it was not judged.
        memorized: whether it was memorized for the answer.
        why: why it was not.
    """

    document: Document
    relevance: float | None = None
    memorized: bool = False
    why: str = ""

    @property
    def said(self) -> str:
        """The status in words.

        Example:
            >>> DocumentStatus(Document("Bergamot is a citrus fruit."), 0.12, why="about something else").said
            'not memorized: about something else (relevance 0.12)'
        """
        relevance = "" if self.relevance is None else f" (relevance {self.relevance:.2f})"
        return ("memorized" if self.memorized else f"not memorized: {self.why}") + relevance

    def as_dict(self, score: float | None = None) -> dict[str, object]:
        """JSON values."""
        relevance = None if self.relevance is None else round(self.relevance, 6)
        return {**document_json(self.document, score), "relevance": relevance, "memorized": self.memorized}


def statuses(
    documents: Sequence[Document], report: MemoryReport, dropped: Sequence[Document] = ()
) -> tuple[DocumentStatus, ...]:
    """The status of each document of a request; those in `dropped` did not fit its prompt."""
    gone = {d.id for d in dropped}
    judged = dict(zip((d.id for d in documents if d.id not in gone), report.relevance, strict=False))
    numbers = {d.id: n for n, d in enumerate(documents, 1)}
    rivals = {lower: higher for higher, lower in report.disagree if higher in report.documents}

    def why(id: str) -> str:
        if id in gone:
            return "it did not fit the model's window"
        if id in report.documents:
            return "rolled back" if report.rolled_back else "nothing to memorize in it"
        alone = f"document {id} was not memorized: "  # a warning of composed memories (memory/fastmem/compose.py)
        if said := [w.removeprefix(alone) for w in report.warnings if w.startswith(alone)]:
            return said[0]
        return f"disagrees with [{numbers[rivals[id]]}]" if id in rivals else "about something else"

    def status(document: Document) -> DocumentStatus:
        # A report with a reason means that the answer has no memory.
        memorized = document.id in report.documents and not report.reason
        return DocumentStatus(document, judged.get(document.id), memorized, "" if memorized else why(document.id))

    return tuple(status(document) for document in documents)


def nothing_memorized(report: MemoryReport) -> str:
    """The reason why nothing was memorized, without a full stop; "" if something was, or if it was rolled back."""
    if not report.reason or report.rolled_back:
        return ""
    return f"nothing was memorized: {report.reason.removeprefix('nothing to memorize: ')}"


def disagreements(report: MemoryReport) -> list[str]:
    """A line for each pair of documents that disagree."""
    memorized = () if report.reason else report.documents
    lines = []
    for pair in report.disagree:
        kept = " and ".join(id for id in pair if id in memorized)
        result = f"only {kept} was memorized" if kept else "neither was memorized"
        lines.append(f"documents {pair[0]} and {pair[1]} disagree; {result}")
    return lines
