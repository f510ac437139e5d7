"""Memories of several documents joined: each document is memorized by itself, and the request speaks with their mean.

    change of a weight = (B_1 A_1 + ... + B_n A_n) / n

A_d and B_d are what document d is memorized with alone: in a prompt that holds nothing else, so that neither its
neighbours nor what is asked decide them, and `Engine.memorize` of that document makes the same. So a page that a bank
knows is not trained again, whatever it is retrieved with. It has a price: with five pages a request, answers were right
less often than with the pages memorized together, by 8 points of 100 (docs/method.md, which also says why the mean).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from memograft.memory.base import Model, Task, Wanted
from memograft.memory.fastmem.contexts import Context, memories, rows_of
from memograft.memory.fastmem.loss import Objective
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
    """What is joined for one request.

    Attributes:
        whole: its documents as they stand in the prompt.
        parts: the memory of each of them.
    """

    whole: Context
    parts: Sequence[tuple[Adapter, MemoryReport]]

    def told(self, made: Made) -> Made:
        """The joined memory, whose report tells what was done for its parts too."""
        adapter, report = made
        reports = [part for _, part in self.parts]
        seconds = report.seconds + max(part.seconds for part in reports)
        steps, reused = sum(part.steps for part in reports), all(part.reused for part in reports)
        return adapter, replace(report, steps=steps, seconds=seconds, reused=reused)


def compose(
    model: Model, rows: Sequence[Wanted], selections: Sequence[Selection], filled: Prefill, task: Task
) -> list[tuple[Selection, Made]]:
    """The joined memory of each row, and its selection without the documents that have no memory of their own."""
    parts = [_parts(model, row, selection) for row, selection in zip(rows, selections, strict=True)]
    found = memories(model, [part for own in parts for part in own if part is not None], filled, task)
    left: list[Selection] = []
    made: list[Made] = []
    sums: dict[Training, dict[int, _Sum]] = {}
    for n, (row, selection, own) in enumerate(zip(rows, selections, parts, strict=True)):
        rest, held = _held(selection, own, found)
        left.append(rest)
        why = rest.warnings[len(selection.warnings) :]
        made.append((None, MemoryReport(rolled_back=any(own), reason="; ".join(why))))  # unless some are held
        if held:
            whole = Context.of(model, rest.about, row.memory, row.memory.training, row.row)
            sums.setdefault(whole.training, {})[n] = _Sum(whole, held)
    for training, alike in sums.items():
        for n, result in zip(alike, _summed(model, training, list(alike.values()), filled), strict=True):
            made[n] = alike[n].told(result)
    return list(zip(left, made, strict=True))


def _parts(model: Model, row: Wanted, selection: Selection) -> list[Context | None]:
    """Each of the chosen documents by itself; None for one that has nothing to memorize."""
    memory, parts = replace(row.memory, compose=False), list[Context | None]()
    for document in selection.about.documents:
        prompt = model.prompts.build([{"role": "user", "content": "?"}], [document])
        prompt = replace(prompt, ids=prompt.ids[: prompt.spans[0][1]])  # what follows decides nothing
        some = len(prompt.context) > 1
        parts.append(Context.of(model, prompt, memory, memory.training) if some else None)
    return parts


def _held(
    selection: Selection, parts: Sequence[Context | None], found: Mapping[str, Made]
) -> tuple[Selection, list[tuple[Adapter, MemoryReport]]]:
    """The selection of the documents that have a memory, saying why others have none; and these memories."""
    kept, held, why = list[int](), dict[str, tuple[Adapter, MemoryReport]](), list[str]()
    for n, (document, part) in enumerate(zip(selection.about.documents, parts, strict=True)):
        adapter, report = found[part.id] if part is not None else (None, MemoryReport(reason="it has no words"))
        if part is None or adapter is None:
            why.append(f"document {document.id} was not memorized: {report.reason}")
        else:
            kept.append(n)
            held[part.id] = (adapter, report)  # the same page twice is one memory
    return selection.only(kept, *why), list(held.values())


def _summed(model: Model, training: Training, sums: Sequence[_Sum], filled: Prefill) -> list[Made]:
    """Join the memories of several requests side by side; where there is no room for that, one by one."""
    backbone, started = model.backbone, time.perf_counter()
    try:
        rows = rows_of(model, [each.whole for each in sums], filled)
        objective = Objective(backbone, rows, training.kl_weight, None)
        adapters = [mean([adapter for adapter, _ in each.parts], backbone.width) for each in sums]
        return judged(_Fixed(backbone, adapters), objective, rows, training, [()] * len(sums), started)
    except torch.OutOfMemoryError as e:
        reason = f"out of memory while joining memories: {e}"
    # Outside the handler, which holds on to all that was computed.
    if len(sums) > 1:
        return [_summed(model, training, [each], filled)[0] for each in sums]
    return [(None, MemoryReport(rolled_back=True, reason=reason))]


class _Fixed:
    """Adapters that are trained no more, one for each of B requests."""

    def __init__(self, backbone: Backbone, adapters: Sequence[Adapter]) -> None:
        self._backbone, self._adapters = backbone, list(adapters)

    @contextmanager
    def active(self) -> Iterator[None]:
        with applied(self._backbone, stack(self._adapters, self._backbone)):
            yield

    def adapters(self) -> list[Adapter]:
        return self._adapters
