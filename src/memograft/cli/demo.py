"""`memograft demo`: index the bundled corpus, answer its questions with three methods, and show what changed.

corpus ──> vector store ──> k pages per question ──> closed book | plain | memorized ──> table, JSON, HTML page
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from memograft import page
from memograft.cli.console import progress_bar
from memograft.cli.document_status import nothing_memorized, statuses
from memograft.cli.index import index_folder
from memograft.cli.models import load_engine, title, warnings_of
from memograft.cli.outcome import KINDS, Outcome, Question, summary
from memograft.passages.vector_store import Hit, VectorStore

if TYPE_CHECKING:
    from memograft.engine import Engine
    from memograft.memory.fastmem.memory import FastMem
    from memograft.request import Answer

MAX_NEW_TOKENS = 32  # tiny answers in one short sentence
_BATCH = 6  # questions answered together


def questions() -> list[Question]:
    """The bundled questions."""
    text = (files("memograft") / "data/demo/questions.json").read_text(encoding="utf-8")
    return [Question(**fields) for fields in json.loads(text)]


def demo(
    *, model: str, memory: FastMem, store: Path | None, html: Path | None, k: int, limit: int | None, quiet: bool
) -> tuple[list[Outcome], dict[str, object]]:
    """Run the demo; returns the outcomes, and the result as JSON values."""
    if html:
        page.check(html)
    asked = _some(questions(), limit)
    with progress_bar(not quiet) as bar:
        hits = _retrieve(asked, store, k, bar)
        engine = load_engine(model) if quiet else _loaded(model, bar)
        with engine:
            started = time.perf_counter()
            outcomes = _answer_all(engine, asked, hits, memory, bar)
            seconds = time.perf_counter() - started
            if html:
                page.write(html, page.demo_page(_cards(engine, outcomes), summary(outcomes), model=model))
    result = {
        "model": model,
        "k": k,
        "summary": {**summary(outcomes), "seconds": seconds},
        "html": str(html) if html else None,
        "outcomes": [outcome.as_dict() for outcome in outcomes],
    }
    return outcomes, result


def _some(asked: list[Question], limit: int | None) -> list[Question]:
    """The first `limit` questions of each kind."""
    return [q for kind in KINDS for q in [q for q in asked if q.kind == kind][:limit]]


def _loaded(model: str, bar: Progress) -> Engine:
    bar.stop()  # a terminal shows one live display at a time
    engine = load_engine(model)
    bar.start()
    return engine


def _retrieve(asked: Sequence[Question], path: Path | None, k: int, bar: Progress) -> list[list[Hit]]:
    task = bar.add_task("indexing the pages", total=None)
    corpus = files("memograft") / "data/demo/pages"
    with as_file(corpus) as folder, VectorStore(path=path, progress=False) as store:
        index_folder(store, folder, on_file=lambda done, total: bar.update(task, completed=done, total=total))
        return [store.search(q.question, k=k) for q in asked]


def _answer_all(
    engine: Engine, asked: Sequence[Question], hits: Sequence[Sequence[Hit]], memory: FastMem, bar: Progress
) -> list[Outcome]:
    outcomes = []
    task = bar.add_task("answering", total=len(asked))
    for start in range(0, len(asked), _BATCH):
        batch, found = asked[start : start + _BATCH], hits[start : start + _BATCH]
        closed, _ = _answers(engine, batch, [()] * len(batch), None)
        plain, plain_seconds = _answers(engine, batch, found, None)
        memorized, memorized_seconds = _answers(engine, batch, found, memory)
        for question, seen, without, read, known in zip(batch, found, closed, plain, memorized, strict=True):
            assert known.memory is not None, "an answer with a memory has a report"
            texts = (without.text, read.text, known.text)
            cut = tuple(warnings_of([read]))
            became = statuses([hit.document for hit in seen], known.memory, known.dropped)
            outcomes.append(
                Outcome(question, tuple(seen), *texts, known.memory, plain_seconds, memorized_seconds, cut, became)
            )
        bar.update(task, advance=len(batch))
    return outcomes


def _answers(
    engine: Engine, asked: Sequence[Question], hits: Sequence[Sequence[Hit]], memory: FastMem | None
) -> tuple[list[Answer], float]:
    """The answers, and the seconds per question of the batch's time."""
    from memograft.request import Request, Sampling

    requests = [
        Request(
            question.question,
            documents=[hit.document for hit in found],
            memory=memory,
            sampling=Sampling(MAX_NEW_TOKENS),
            overflow="truncate",
        )
        for question, found in zip(asked, hits, strict=True)
    ]
    started = time.perf_counter()
    answers = engine.answer_batch(requests)
    return answers, (time.perf_counter() - started) / len(requests)


def _cards(engine: Engine, outcomes: Sequence[Outcome]) -> list[page.Card]:
    return [
        page.Card(
            question=o.question.question,
            kind=o.question.kind,
            expected=o.question.expected,
            documents=tuple(
                page.Retrieved(title(f.document), f.document.text, f.memorized, f.said) for f in o.statuses
            ),
            answers=(
                page.Reply("no document", o.closed, o.right_closed),
                page.Reply("in the prompt", o.plain, o.right_plain),
                page.Reply("memorized", o.memorized, o.right_memorized),
            ),
            changed=o.changed,
            spoiled=o.spoiled,
            loss_before=o.memory.loss_before,
            loss_after=o.memory.loss_after,
            seconds=o.memorized_seconds,
            note=_sentence(nothing_memorized(o.memory) or o.memory.reason or ""),
            tokens=page.tokens_of(
                engine.decode, o.memory, [f.document.text for f in o.statuses if f.document.id in o.memory.documents]
            ),
        )
        for o in outcomes
    ]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
