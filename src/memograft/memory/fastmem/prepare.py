"""The memories of a batch: for each request an adapter and a report, made, fetched from its handle, or neither.

Requests with the same settings are memorized together. Running out of memory here costs a request its memory, not its
answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import torch

from memograft.memory.adapter import Adapter
from memograft.memory.fastmem.rows import context_rows, merge
from memograft.memory.fastmem.select import Selection, select
from memograft.memory.fastmem.settings import FastMem
from memograft.memory.fastmem.train import memorize
from memograft.memory.handle import MemoryHandle
from memograft.memory.report import MemoryReport
from memograft.model.backbone import Backbone
from memograft.model.prefill import Prefill, prefill
from memograft.prompt.builder import Prompt, PromptBuilder

__all__ = ["Memory", "make_memories"]

_IRRELEVANT = "nothing to memorize: no document is about the question (see `relevance`)"

Memory = tuple[Adapter | None, MemoryReport | None]


def make_memories(
    backbone: Backbone,
    builder: PromptBuilder,
    pad_id: int,
    wanted: Sequence[FastMem | MemoryHandle | None],
    prompts: Sequence[Prompt],
    filled: Prefill,
    *,
    given_up: Callable[[], bool],
    progress: bool = False,
) -> list[Memory]:
    """One memory for each of the prompts that `filled` was made of."""
    made: list[Memory] = [(None, None)] * len(wanted)
    together: dict[FastMem, list[int]] = {}
    selections = select(backbone, builder, wanted, prompts, filled)
    for n, (memory, selection) in enumerate(zip(wanted, selections, strict=True)):
        if isinstance(memory, MemoryHandle):
            made[n] = _kept(memory, selection)
        elif memory is not None and len(selection.about.context) < 2:
            made[n] = (None, _nothing(memory, selection))
        elif memory is not None:
            together.setdefault(memory, []).append(n)

    def run(settings: FastMem, members: Sequence[int]) -> list[Memory]:
        """Memorize together; out of memory, one by one."""
        chosen = [selections[n].about for n in members]
        try:
            rows, places = filled, list(members)
            if settings.template == "assistant":
                chosen = [builder.as_assistant(prompt.documents) for prompt in chosen]
                rows, places = prefill(backbone, [p.ids for p in chosen], pad_id), list(range(len(chosen)))
            merged = merge([context_rows(rows, place, p) for place, p in zip(places, chosen, strict=True)])
            return list(memorize(backbone, merged, settings, cancelled=given_up, progress=progress))
        except torch.OutOfMemoryError as e:
            reason = f"out of memory while memorizing: {e}"
        # Outside the handler, which holds on to all that was computed.
        if len(members) > 1:
            return [run(settings, [n])[0] for n in members]
        return [(None, MemoryReport(rolled_back=True, reason=reason, settings=asdict(settings)))]

    for settings, members in together.items():
        for n, (adapter, report) in zip(members, run(settings, members), strict=True):
            assert report is not None
            made[n] = (adapter, replace(report, **selections[n].said))
    return made


def _kept(handle: MemoryHandle, selection: Selection) -> Memory:
    """A handle's memory, unless none of its documents is about the question."""
    report = replace(handle.report, steps=0, seconds=0.0, relevance=selection.relevance)
    if not selection.relevance or selection.about.documents:
        return handle.adapter, report
    return None, replace(report, reason=_IRRELEVANT, **selection.said)


def _nothing(settings: FastMem, selection: Selection) -> MemoryReport:
    reason = _IRRELEVANT
    if len(selection.about.documents) == len(selection.prompt.documents):
        there = f"documents of {len(selection.prompt.context)} tokens" if selection.prompt.documents else "no documents"
        reason = f"nothing to memorize: the request has {there}"
    return MemoryReport(reason=reason, settings=asdict(settings), **selection.said)
