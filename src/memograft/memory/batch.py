"""The memories of a batch: for each request an adapter and a report, made, fetched from its handle, or neither.

Requests with the same settings are memorized together. Running out of memory here costs a request its memory, not its
answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from memograft.backbone import Backbone
from memograft.memory.adapter import Adapter
from memograft.memory.fastmem import FastMem, memorize
from memograft.memory.handle import MemoryHandle
from memograft.memory.relevance import can_judge, relevance
from memograft.memory.report import MemoryReport
from memograft.memory.rows import context_rows, merge
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
    scores = _judge(backbone, wanted, prompts, filled)
    about = [_about(memory, prompt, own) for memory, prompt, own in zip(wanted, prompts, scores, strict=True)]
    for n, memory in enumerate(wanted):
        if isinstance(memory, MemoryHandle):
            made[n] = _kept(memory, prompts[n], about[n], scores[n])
        elif memory is not None and len(about[n].context) < 2:
            made[n] = (None, _nothing(memory, prompts[n], about[n], scores[n]))
        elif memory is not None:
            together.setdefault(memory, []).append(n)

    def run(settings: FastMem, members: Sequence[int]) -> list[Memory]:
        """Memorize together; out of memory, one by one."""
        chosen = [about[n] for n in members]
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
            made[n] = (adapter, replace(report, **_said(prompts[n], about[n], scores[n])))
    return made


def _judge(
    backbone: Backbone, wanted: Sequence[FastMem | MemoryHandle | None], prompts: Sequence[Prompt], filled: Prefill
) -> list[tuple[float, ...]]:
    """How much each document is about its question; () for requests that do not ask, or where it cannot be said."""
    scores: list[tuple[float, ...]] = [()] * len(wanted)
    rows = []
    for n, (memory, prompt) in enumerate(zip(wanted, prompts, strict=True)):
        # A handle whose documents are not the prompt's own cannot be judged by those.
        own = not isinstance(memory, MemoryHandle) or memory.documents == prompt.documents
        if memory is not None and _settings(memory).relevance is not None and own and can_judge(prompt):
            rows.append(n)
    try:
        found = relevance(backbone, filled, rows, [prompts[n] for n in rows]) if rows else []
    except torch.OutOfMemoryError:
        found = []
    for n, own_scores in zip(rows, found, strict=False):
        scores[n] = own_scores
    return scores


def _about(memory: FastMem | MemoryHandle | None, prompt: Prompt, scores: tuple[float, ...]) -> Prompt:
    """The prompt with only those documents marked that are about its question."""
    threshold = _settings(memory).threshold if memory is not None else None
    if threshold is None or not scores:
        return prompt
    kept = [n for n, score in enumerate(scores) if score >= threshold]
    return replace(
        prompt, spans=tuple(prompt.spans[n] for n in kept), documents=tuple(prompt.documents[n] for n in kept)
    )


def _kept(handle: MemoryHandle, prompt: Prompt, about: Prompt, scores: tuple[float, ...]) -> Memory:
    """A handle's memory, unless none of its documents is about the question."""
    report = replace(handle.report, steps=0, seconds=0.0, relevance=scores)
    if not scores or about.documents:
        return handle.adapter, report
    return None, replace(report, reason=_IRRELEVANT, documents=(), left_out=tuple(d.id for d in prompt.documents))


def _said(prompt: Prompt, about: Prompt, scores: tuple[float, ...]) -> dict[str, Any]:
    """What the report says of the documents."""
    kept = {id(d) for d in about.documents}
    return {
        "documents": tuple(d.id for d in about.documents),
        "left_out": tuple(d.id for d in prompt.documents if id(d) not in kept),
        "relevance": scores,
    }


def _nothing(settings: FastMem, prompt: Prompt, about: Prompt, scores: tuple[float, ...]) -> MemoryReport:
    reason = _IRRELEVANT
    if len(about.documents) == len(prompt.documents):
        what = f"documents of {len(prompt.context)} tokens" if prompt.documents else "no documents"
        reason = f"nothing to memorize: the request has {what}"
    return MemoryReport(reason=reason, settings=asdict(settings), **_said(prompt, about, scores))


def _settings(memory: FastMem | MemoryHandle) -> FastMem:
    return memory.settings if isinstance(memory, MemoryHandle) else memory
