"""`record`: all that is kept of one answer. The table, the picture and the report are made from records alone."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from memograft.evaluation import scores
from memograft.evaluation.cells import Record
from memograft.evaluation.items import Item

if TYPE_CHECKING:
    from memograft import Answer
    from memograft.memory.report import MemoryReport

__all__ = ["VERSION", "record"]

VERSION = 2  # of what a record holds; records of another version are asked again


def record(item: Item, outcome: Answer | Exception, ignore_case: bool) -> Record:
    """The record of an answer to the item, or of the error in its place, which is scored as an empty answer.

    Always: `id`, `kind`, `right` (it says one of the answers), `belief` and `other` (it says the item's), `em` and `f1`
    (SQuAD's), `new_tokens`, `chars`, `finish_reason` (None for an error), `repeats`, `recites` (words), and `clean`:
    right, ended by itself, and not repeating. `text`, and `timings` in seconds of the whole batch that it ran in; or
    `error`. With a memory: `loss_before`, `loss_after`, `kl` (nats per token, None if not finite), `steps`,
    `rolled_back`, `reason`, `memorized` (how many documents), `relevance` (of each document) and `disagree` (whether
    the report says that some do).
    """
    answer = None if isinstance(outcome, Exception) else outcome
    text = answer.text if answer else ""
    right, repeats = any(scores.says(text, value, ignore_case) for value in item.answers), scores.repeats(text)
    made: Record = {
        "id": item.id,
        "kind": item.kind,
        "right": right,
        "clean": right and answer is not None and answer.finish_reason == "stop" and not repeats,
        "em": scores.exact_match(text, item.answers),
        "f1": round(scores.f1(text, item.answers), 4),
        "belief": scores.says(text, item.belief, ignore_case),
        "other": scores.says(text, item.other, ignore_case),
        "new_tokens": answer.usage.completion_tokens if answer else 0,
        "chars": len(text),
        "finish_reason": answer.finish_reason if answer else None,
        "repeats": repeats,
        "recites": scores.recites(text, [d.text for d in item.documents]),
    }
    if answer is None:
        return made | {"error": f"{type(outcome).__name__}: {outcome}"}
    made |= {"text": text, "timings": {name: round(value, 4) for name, value in asdict(answer.timings).items()}}
    return made | (_memory(answer.memory) if answer.memory is not None else {})


def _memory(report: MemoryReport) -> dict[str, Any]:
    return {
        **{name: _finite(getattr(report, name)) for name in ("loss_before", "loss_after", "kl")},
        "steps": report.steps,
        "rolled_back": report.rolled_back,
        "reason": report.reason,
        "memorized": len(report.documents),
        "relevance": [_finite(value) for value in report.relevance],
        "disagree": bool(report.disagree),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
