"""`memograft ask`: answer one question plainly and memorized, side by side, optionally with a datastore."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from memograft import page
from memograft.cli.console import err, out, warn
from memograft.cli.document_status import DocumentStatus, disagreements, nothing_memorized, statuses
from memograft.cli.models import answer_json, document_json, load_engine, retrieve, title, warnings_of
from memograft.cli.options import STORE
from memograft.cli.picture import picture
from memograft.cli.sources import sources_json, sources_table, steering
from memograft.documents import Document

if TYPE_CHECKING:
    from memograft.decoding.cad import Cad
    from memograft.decoding.dola import Dola
    from memograft.engine import Engine
    from memograft.memory.base import Memory
    from memograft.memory.handle import MemoryHandle
    from memograft.memory.report import MemoryReport
    from memograft.request import Answer, Request, Sampling
    from memograft.rtd.formula import Rtd

Timed = tuple["Answer", float]


def ask(
    question: str,
    *,
    model: str,
    store: Path | None,
    k: int,
    memory: Memory,
    memory_folder: Path | None,
    datastore: Path | None,
    weight: float | None,
    contrasts: Sequence[Cad | Dola],
    ways: Sequence[str],
    sampling: Mapping[str, Any],
    device: str | None,
    stream: bool,
    html: Path | None,
    quiet: bool,
) -> dict[str, object]:
    """Answer with each of `ways` ("plain", "memorized"), print the answers unless `quiet`, and return JSON values.

    `store` None is the default folder; `contrasts` are for both ways, `sampling` are the arguments of `Sampling`. With
    `k` 0, or with a datastore and no store, only the plain answer is given.

    Raises:
        StoreError: there is no store, or no datastore.
        ModelMismatchError: the datastore belongs to another model.
        SettingsError: the page cannot be written to `html`.
    """
    if html:
        page.check(html)
    from memograft.request import Sampling

    chosen = Sampling(**sampling)
    # Without a store, a datastore can be used alone.
    alone = k == 0 or (store is None and datastore is not None and "plain" in ways and not STORE.exists())
    if alone and not memory_folder:
        ways = [way for way in ways if way == "plain"] or ways
    hits = [] if memory_folder or alone else retrieve(store or STORE, question, k)
    rtd = [steering(datastore, weight)] if datastore else []
    processors = [*rtd, *contrasts]
    with load_engine(model, device) as engine:
        handle = engine.load_memory(memory_folder) if memory_folder else None
        documents = handle.documents if handle else tuple(hit.document for hit in hits)
        scores = [None] * len(documents) if handle else [hit.score for hit in hits]
        memories: dict[str, Memory | MemoryHandle | None] = {"plain": None, "memorized": handle or memory}
        answers: dict[str, Timed] = {}
        for way in ways:
            request = _request(question, documents, memories[way], processors, chosen)
            answers[way] = _answer(engine, request, way, stream)
        memorized = answers["memorized"][0] if "memorized" in answers else None
        report = memorized.memory if memorized else None
        became = statuses(documents, report, memorized.dropped) if memorized and report else ()
        if html:
            page.write(html, picture(question, answers, documents, became, engine, model))
    for message in warnings_of([answer for answer, _ in answers.values()]):
        warn(message)
    if not quiet:
        if not stream:
            out().print(_answers_table(question, answers))
        if documents:
            out().print(_documents_table(documents, scores, became))
        if report:
            for line in disagreements(report):
                out().print(Text(line), soft_wrap=True)
            out().print(_memory_line(report, became), soft_wrap=True)
        if datastore:
            out().print(sources_table({way: answer for way, (answer, _) in answers.items()}))
        if html:
            err().print(f"page: {html}", markup=False, soft_wrap=True)
    return {
        "question": question,
        "model": model,
        "datastore": str(datastore) if datastore else None,
        "weight": rtd[0].weight if rtd else None,
        "contrasts": [repr(contrast) for contrast in contrasts],
        "html": str(html) if html else None,
        "documents": [f.as_dict(s) for f, s in zip(became, scores, strict=True)]
        if report
        else [document_json(d, s) for d, s in zip(documents, scores, strict=True)],
        **{way: {**answer_json(answer, seconds), **sources_json(answer)} for way, (answer, seconds) in answers.items()},
    }


def _request(
    question: str,
    documents: Sequence[Document],
    memory: Memory | MemoryHandle | None,
    processors: Sequence[Rtd | Cad | Dola],
    sampling: Sampling,
) -> Request:
    from memograft.request import Request

    return Request(
        question,
        documents=documents,
        memory=memory,
        processors=processors,
        sampling=sampling,
        overflow="truncate",
    )


def _answer(engine: Engine, request: Request, way: str, stream: bool) -> Timed:
    started = time.perf_counter()
    if not stream:
        with err().status(f"answering ({way})"):
            answer = engine.answer(request)
        return answer, time.perf_counter() - started
    out().print(Text(f"{way}: ", style="bold"), end="")
    pieces = engine.stream(request)
    for piece in pieces:
        out().print(Text(piece), end="", soft_wrap=True)
    out().print()
    assert pieces.answer is not None, "a finished stream has its answer"
    return pieces.answer, time.perf_counter() - started


def _answers_table(question: str, answers: dict[str, Timed]) -> Table:
    table = Table(title=Text(question), title_justify="left", title_style="bold", expand=False)
    for way in answers:
        table.add_column(way, overflow="fold", ratio=1, min_width=24)
    table.add_row(*(Text(answer.text or "(nothing)") for answer, _ in answers.values()))
    table.add_section()
    table.add_row(*(Text(f"{seconds:.2f} s", style="dim") for _, seconds in answers.values()))
    return table


def _documents_table(
    documents: Sequence[Document], scores: Sequence[float | None], became: Sequence[DocumentStatus]
) -> Table:
    table = Table(title="documents", title_justify="left", title_style="dim", box=None, padding=(0, 2, 0, 0))
    for name in ("title", "id"):
        table.add_column(name, overflow="fold")
    table.add_column("score", justify="right")
    for name in ("relevance", "memorized") if became else ():
        table.add_column(name, justify="right")
    for n, (document, score) in enumerate(zip(documents, scores, strict=True)):
        status = became[n] if became else None
        judged = [_number(status.relevance), "yes" if status.memorized else "no"] if status else []
        # Scores of BM25 may be tiny: few passages, or words that are in most of them.
        table.add_row(Text(title(document)), Text(document.id), _number(score, ".3g"), *judged)
    return table


def _number(value: float | None, form: str = ".3f") -> str:
    return "" if value is None else format(value, form)


def _memory_line(report: MemoryReport, became: Sequence[DocumentStatus]) -> Text:
    if why := nothing_memorized(report):
        return Text(f"memory: {why}", style="dim")
    if not report.steps:
        return Text("")
    kept = sum(status.memorized for status in became)
    line = (
        f"memory: {kept} of {len(became)} documents, loss {report.loss_before:.3f} -> {report.loss_after:.3f} nats per "
    )
    line += f"token, KL {report.kl:.3f}, {report.steps} steps, {report.seconds:.2f} s"
    return Text(line + (", rolled back" if report.rolled_back else ""), style="dim")
