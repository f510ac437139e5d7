"""The page of `memograft ask --html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from memograft import page
from memograft.cli.document_status import DocumentStatus, nothing_memorized
from memograft.cli.models import title
from memograft.documents import Document

if TYPE_CHECKING:
    from memograft.engine import Engine
    from memograft.memory.report import MemoryReport
    from memograft.request import Answer

__all__ = ["picture"]


def picture(
    question: str,
    answers: Mapping[str, tuple[Answer, float]],
    documents: Sequence[Document],
    became: Sequence[DocumentStatus],
    engine: Engine,
    model: str,
) -> str:
    """The page as HTML: each answer, and the documents with their status."""
    ways = [
        page.Way(way, page.references_of(answer, engine.tokenizer), seconds)
        for way, (answer, seconds) in answers.items()
    ]
    report = answers["memorized"][0].memory if "memorized" in answers else None
    if report is None:
        shown = page.Memorized(tuple(page.Retrieved(title(d), d.text, False, "in the prompt") for d in documents))
    else:
        shown = _memorized(report, became, engine)
    return page.question_page(question, ways, shown, model=model)


def _memorized(report: MemoryReport, became: Sequence[DocumentStatus], engine: Engine) -> page.Memorized:
    texts = [status.document.text for status in became if status.document.id in report.documents]
    note = nothing_memorized(report) or report.reason or ""
    return page.Memorized(
        tuple(page.Retrieved(title(f.document), f.document.text, f.memorized, f.said) for f in became),
        page.tokens_of(engine.decode, report, texts),
        report.loss_before,
        report.loss_after,
        note[:1].upper() + note[1:],
    )
