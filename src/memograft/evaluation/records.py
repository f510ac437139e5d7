"""`record`: everything that is stored about one answer. Tables, plots and reports are made from records only."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from memograft.decoding.repetition import repeats
from memograft.evaluation import scores
from memograft.evaluation.cells import Record
from memograft.evaluation.items import Item
from memograft.evaluation.protocol import protocol_of

if TYPE_CHECKING:
    from memograft import Answer
    from memograft.memory.report import MemoryReport

__all__ = ["VERSION", "record"]

VERSION = 2  # version of the fields; questions with records of another version are asked again


def record(item: Item, outcome: Answer | Exception, ignore_case: bool) -> Record:
    """The record of an answer to the item, or of an error, which is scored as an empty answer.

    The answer that the item's protocol extracts is compared with the item: `right` (it contains one of the answers; for
    a choice, not the other candidate), `hit` (the normalised text contains a normalised answer, as in FastMem's paper),
    `em` and `f1` (SQuAD's), `rouge_l` (only for summaries), `belief` and `other` (it contains the item's); `formed` is
    whether an answer could be extracted. About the whole text: `new_tokens`, `chars`, `finish_reason` (None for an
    error), `repeats` and `recites` (words). `clean` means right, ended by itself and not repeating.

    Always: `id`, `kind` and `group`; `text` and `timings` (seconds of the whole batch), or `error`. With a memory:
    `loss_before`, `loss_after`, `kl` (nats per token, None if not finite), `steps`, `rolled_back`, `reason`,
    `memorized` (number of documents), `relevance` (of each document) and `disagree` (whether any documents disagree).
    """
    answer = None if isinstance(outcome, Exception) else outcome
    text = answer.text if answer else ""
    made: Record = {
        "id": item.id,
        "kind": item.kind,
        "group": item.group,
        **_judged(item, text, ignore_case),
        "new_tokens": answer.usage.completion_tokens if answer else 0,
        "chars": len(text),
        "finish_reason": answer.finish_reason if answer else None,
        "repeats": repeats(text),
        "recites": scores.recites(text, [d.text for d in item.documents]),
    }
    made["clean"] = made["right"] and made["finish_reason"] == "stop" and not made["repeats"]
    if answer is None:
        return made | {"error": f"{type(outcome).__name__}: {outcome}"}
    made |= {"text": text, "timings": {name: round(value, 4) for name, value in asdict(answer.timings).items()}}
    return made | (_memory(answer.memory) if answer.memory is not None else {})


def _judged(item: Item, text: str, ignore_case: bool) -> Record:
    """Compare the text with the item."""
    read = protocol_of(item.protocol).extract(text, item.task)
    said = read or ""
    belief = scores.says(said, item.belief, ignore_case)
    right = any(scores.says(said, value, ignore_case) for value in item.answers)
    judged: Record = {
        "right": right and not (item.task == "choice" and belief),
        "hit": any(scores.holds(said, value) for value in item.answers),
        "em": scores.exact_match(said, item.answers),
        "f1": round(scores.f1(said, item.answers), 4),
        "formed": read is not None,
        "belief": belief,
        "other": scores.says(said, item.other, ignore_case),
    }
    if item.task == "summary":
        judged["rouge_l"] = round(scores.rouge_l(said, item.answers), 4)
    return judged


def _memory(report: MemoryReport) -> Record:
    return {
        "loss_before": _finite(report.loss_before),
        "loss_after": _finite(report.loss_after),
        "kl": _finite(report.kl),
        "steps": report.steps,
        "rolled_back": report.rolled_back,
        "reason": report.reason,
        "memorized": len(report.documents),
        "relevance": [_finite(value) for value in report.relevance],
        "disagree": bool(report.disagree),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
