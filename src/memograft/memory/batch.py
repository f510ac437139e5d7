"""The memories of a batch: for each request an adapter and a report, made, fetched from its handle, or neither.

Requests with the same settings are memorized together. Running out of memory here costs a request its memory, not its
answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import torch

from memograft.backbone import Backbone
from memograft.memory.adapter import Adapter
from memograft.memory.choose import Choice, choose
from memograft.memory.fastmem import memorize
from memograft.memory.handle import MemoryHandle
from memograft.memory.report import MemoryReport
from memograft.memory.rows import context_rows, merge
from memograft.memory.settings import FastMem
from memograft.prefill import Prefill, prefill
from memograft.prompt import Prompt, PromptBuilder

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
    choices = choose(backbone, builder, wanted, prompts, filled)
    for n, (memory, choice) in enumerate(zip(wanted, choices, strict=True)):
        if isinstance(memory, MemoryHandle):
            made[n] = _kept(memory, choice)
        elif memory is not None and len(choice.about.context) < 2:
            made[n] = (None, _nothing(memory, choice))
        elif memory is not None:
            together.setdefault(memory, []).append(n)

    def run(settings: FastMem, members: Sequence[int]) -> list[Memory]:
        """Memorize together; out of memory, one by one."""
        chosen = [choices[n].about for n in members]
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
            made[n] = (adapter, replace(report, **choices[n].said))
    return made


def _kept(handle: MemoryHandle, choice: Choice) -> Memory:
    """A handle's memory, unless none of its documents is about the question."""
    report = replace(handle.report, steps=0, seconds=0.0, relevance=choice.relevance)
    if not choice.relevance or choice.about.documents:
        return handle.adapter, report
    return None, replace(report, reason=_IRRELEVANT, **choice.said)


def _nothing(settings: FastMem, choice: Choice) -> MemoryReport:
    reason = _IRRELEVANT
    if len(choice.about.documents) == len(choice.prompt.documents):
        there = f"documents of {len(choice.prompt.context)} tokens" if choice.prompt.documents else "no documents"
        reason = f"nothing to memorize: the request has {there}"
    return MemoryReport(reason=reason, settings=asdict(settings), **choice.said)
