"""Compose memories: memorize each document of a request by itself, and answer with the mean of these adapters.

    change of a weight = (B_1 A_1 + ... + B_n A_n) / n

A_d and B_d are trained on document d alone, in a prompt without question or other documents. They therefore do not
depend on the request and equal what `Engine.memorize` makes of that document, so a bank can reuse them in any
combination. The cost is accuracy: with five pages per request, 8 points of 100 fewer right answers than when the pages
are memorized together (docs/method.md, which also explains the choice of the mean).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from memograft.memory.base import Model, Task, Wanted
from memograft.memory.fastmem.contexts import Context, memories, rows_of
from memograft.memory.fastmem.loss import ALL, Objective
from memograft.memory.fastmem.rows import TrainingRows
from memograft.memory.fastmem.select import Selection
from memograft.memory.fastmem.settings import Training
from memograft.memory.fastmem.train import Made, judged
from memograft.memory.report import MemoryReport
from memograft.model.adapter import Adapter, applied, mean, stack
from memograft.model.backbone import Backbone
from memograft.model.kv import Prefill

__all__ = ["compose"]


@dataclass(frozen=True)
class _Sum:
    """The memories to join for one request.

    Attributes:
        whole: the request's documents, in its prompt.
        parts: the adapter and report of each document.
    """

    whole: Context
    parts: Sequence[tuple[Adapter, MemoryReport]]

    def told(self, made: Made) -> Made:
        """Add the steps and seconds of the parts to the report of the joined memory."""
        adapter, report = made
        reports = [part for _, part in self.parts]
        seconds = report.seconds + max(part.seconds for part in reports)
        steps, reused = sum(part.steps for part in reports), all(part.reused for part in reports)
        return adapter, replace(report, steps=steps, seconds=seconds, reused=reused)


def compose(
    model: Model, rows: Sequence[Wanted], selections: Sequence[Selection], filled: Prefill, task: Task
) -> list[tuple[Selection, Made]]:
    """Return each row's joined memory, and its selection without the documents that could not be memorized."""
    parts = [_parts(model, row, selection) for row, selection in zip(rows, selections, strict=True)]
    found = memories(model, [part for own in parts for part in own if part is not None], filled, task)
    left: list[Selection] = []
    made: list[Made] = []
    sums: dict[Training, dict[int, _Sum]] = {}
    for n, (row, selection, own) in enumerate(zip(rows, selections, parts, strict=True)):
        rest, held = _held(selection, own, found)
        left.append(rest)
        why = rest.warnings[len(selection.warnings) :]
        made.append((None, MemoryReport(rolled_back=any(own), reason="; ".join(why))))  # replaced if parts are left
        if held:
            whole = Context.of(model, rest.about, row.memory, row.memory.training, row.row)
            sums.setdefault(whole.training, {})[n] = _Sum(whole, held)
    for training, alike in sums.items():
        for n, result in zip(alike, _summed(model, training, list(alike.values()), filled), strict=True):
            made[n] = alike[n].told(result)
    return list(zip(left, made, strict=True))


def _parts(model: Model, row: Wanted, selection: Selection) -> list[Context | None]:
    """Make one context per selected document; None for a document without tokens to memorize."""
    memory, parts = replace(row.memory, compose=False), list[Context | None]()
    for document in selection.about.documents:
        prompt = model.prompts.build([{"role": "user", "content": "?"}], [document])
        prompt = replace(prompt, ids=prompt.ids[: prompt.spans[0][1] + 1])  # later tokens do not matter
        some = len(prompt.context) > 1
        parts.append(Context.of(model, prompt, memory, memory.training) if some else None)
    return parts


def _held(
    selection: Selection, parts: Sequence[Context | None], found: Mapping[str, Made]
) -> tuple[Selection, list[tuple[Adapter, MemoryReport]]]:
    """Return the selection limited to documents that have a memory, with a warning for each other, and the memories."""
    kept, held, why = list[int](), dict[str, tuple[Adapter, MemoryReport]](), list[str]()
    for n, (document, part) in enumerate(zip(selection.about.documents, parts, strict=True)):
        adapter, report = found[part.id] if part is not None else (None, MemoryReport(reason="it has no words"))
        if part is None or adapter is None:
            why.append(f"document {document.id} was not memorized: {report.reason}")
        else:
            kept.append(n)
            held[part.id] = (adapter, report)  # a page that occurs twice counts once
    return selection.only(kept, *why), list(held.values())


def _summed(model: Model, training: Training, sums: Sequence[_Sum], filled: Prefill) -> list[Made]:
    """Join the memories of several requests in one batch; after an out-of-memory error, one request at a time."""
    assert training.shortlist != "auto"
    backbone, started = model.backbone, time.perf_counter()
    try:
        rows = rows_of(model, [each.whole for each in sums], filled)
        objective = Objective(backbone, rows, training.kl_weight, training.shortlist)
        adapters = [mean([adapter for adapter, _ in each.parts], backbone.width) for each in sums]
        return judged(_Fixed(backbone, adapters, rows), objective, rows, training, [()] * len(sums), started)
    except torch.OutOfMemoryError as e:
        reason = f"out of memory while joining memories: {e}"
    # Outside the handler, because the exception's traceback keeps the tensors alive.
    if len(sums) > 1:
        return [_summed(model, training, [each], filled)[0] for each in sums]
    return [(None, MemoryReport(rolled_back=True, reason=reason))]


class _Fixed:
    """The finished adapters of B requests, in the form `judged` takes."""

    def __init__(self, backbone: Backbone, adapters: Sequence[Adapter], rows: TrainingRows) -> None:
        self._backbone, self._adapters, self._blocks = backbone, list(adapters), rows.blocks

    @contextmanager
    def active(self, part: slice = ALL) -> Iterator[None]:
        stacked = stack(self._adapters, self._backbone)
        spread = {n: (self._blocks.spread(a, part), self._blocks.spread(b, part)) for n, (a, b) in stacked.items()}
        with applied(self._backbone, spread):
            yield

    def adapters(self) -> list[Adapter]:
        return self._adapters
