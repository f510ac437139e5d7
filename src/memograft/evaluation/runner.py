"""Ask all questions with all methods. Results are stored in a folder, from which an interrupted run continues."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

from memograft.errors import PromptTooLongError, SettingsError
from memograft.evaluation.cells import Cell, Record
from memograft.evaluation.items import Item, sets_of
from memograft.evaluation.lessons import Lessons
from memograft.evaluation.methods import Method
from memograft.evaluation.provenance import commit, versions
from memograft.evaluation.records import VERSION, record
from memograft.request import Request, Sampling

if TYPE_CHECKING:
    from memograft import Answer, Engine

__all__ = ["BATCH", "Records", "run"]

BATCH = 16  # questions that are asked together
Records = dict[str, dict[str, list[Record]]]  # method -> set -> one record per question


def run(
    engine: Engine,
    methods: Mapping[str, Method],
    items: Sequence[Item],
    folder: str | Path,
    *,
    examples: Sequence[Item] = (),
    max_new_tokens: int = 40,
    ignore_case: bool = False,
    progress: bool = True,
    cells: Collection[tuple[str, str]] | None = None,
) -> Records:
    """One record per method and question, in the order of the questions.

    See `records.record`; added are `seconds` (the question's part of its batch) and `commit`. Failed requests are
    wrong.

    Args:
        engine: the model.
        methods: the methods by name.
        items: the questions, of any number of sets.
        folder: stores the results; created if it does not exist. Stored cells are used only if everything that
            determines the answers is the same: the model, the questions, the settings, the versions.
        examples: worked examples of the tuning split; few-shot and RTD need them.
        max_new_tokens: maximum length of an answer.
        ignore_case: whether "paris" counts as "Paris".
        progress: show a bar.
        cells: ask only these methods and sets, and return their records; the others are still part of what determines
            the worked examples. None: all.

    Raises:
        SettingsError: there are no questions or methods, or a method cannot ask these questions.
        UnsupportedModelError: the model does not support a method's memory.
    """
    if not items or not methods:
        raise SettingsError(f"a run needs questions and methods, got {len(items)} and {len(methods)}; pass both")
    folder, sampling = Path(folder), Sampling(max_new_tokens)
    folder.mkdir(parents=True, exist_ok=True)
    shared = {
        "model": engine.fingerprint,
        "window": engine.max_length,
        "max_new_tokens": max_new_tokens,
        "ignore_case": ignore_case,
        "versions": versions(),
        "records": VERSION,
    }
    # Prompts of similar length share a batch, for less padding. The records are sorted back at the end.
    by_set = [sorted((item for item in items if item.set == name), key=_length) for name in sets_of(items)]
    place = {id(item): n for n, item in enumerate(items)}
    with closing(Lessons(engine, examples, items)) as lessons:
        chosen = []
        for name, method in methods.items():
            taught = {"examples": lessons.digest} if method.needs_examples else {}
            auto = {"defaults": asdict(engine.defaults)} if method.memory else {}  # "auto" depends on the model
            about = shared | taught | auto | {"settings": method.settings()}
            for questions in by_set:
                method.check(questions, lessons)
                if cells is None or (name, questions[0].set) in cells:
                    chosen.append(Cell(folder, name, questions, about))
        at, done = commit(), sum(len(cell.records) for cell in chosen)
        total = sum(len(cell.items) for cell in chosen)
        with tqdm(total=total, initial=done, unit="q", disable=not progress) as bar:
            for cell in chosen:
                if len(cell.records) < len(cell.items):
                    bar.set_description(f"{cell.method}: {cell.items[0].set}")
                    method = methods[cell.method]
                    _fill(cell, bar, at, partial(_ask, engine, method, lessons, cell.items, sampling, ignore_case))
    found: Records = {name: {} for name in methods}
    for cell in chosen:
        records = zip(cell.items, cell.records, strict=True)
        found[cell.method][cell.items[0].set] = [r for _, r in sorted(records, key=lambda pair: place[id(pair[0])])]
    return found


def _length(item: Item) -> int:
    return sum(len(document.text) for document in item.documents)


def _fill(cell: Cell, bar: tqdm[NoReturn], at: str, ask: Callable[[range], list[Record]]) -> None:
    """Ask the missing questions of a cell, batch after batch; `at` is the commit."""
    kept = len(cell.records)
    cell.resume(BATCH)
    bar.update(len(cell.records) - kept)
    for start in range(len(cell.records), len(cell.items), BATCH):
        part = range(start, min(start + BATCH, len(cell.items)))
        cell.add([made | {"commit": at} for made in ask(part)])
        bar.update(len(part))


def _ask(
    engine: Engine,
    method: Method,
    lessons: Lessons,
    items: Sequence[Item],
    sampling: Sampling,
    ignore_case: bool,
    part: range,
) -> list[Record]:
    """The records of one batch."""
    method.prepare(lessons)
    started = time.perf_counter()
    requests: dict[int, Request] = {}
    outcomes: dict[int, Answer | Exception] = {}
    for n in part:
        try:
            requests[n] = method.request(engine, items, n, sampling, lessons)
        except PromptTooLongError as error:  # raised by memorizing; a too long prompt fails in answer_batch
            outcomes[n] = error
    answers = engine.answer_batch(list(requests.values()), return_exceptions=True) if requests else []
    outcomes |= dict(zip(requests, answers, strict=True))
    seconds = round((time.perf_counter() - started) / len(part), 4)
    return [record(items[n], outcomes[n], ignore_case) | {"seconds": seconds} for n in part]
