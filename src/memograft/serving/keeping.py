"""Make memories for later requests, one by one or many for a bank, or read them from a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memograft.documents import Document
from memograft.errors import PromptTooLongError
from memograft.memory.base import Memory, Model, Task, Wanted, content_id
from memograft.memory.compact.keys import exact
from memograft.memory.handle import MemoryHandle
from memograft.memory.report import MemoryReport
from memograft.model.carried import Carried
from memograft.model.kv import Segment, can_join
from memograft.model.prefill import prefill
from memograft.prompt.builder import Prompt
from memograft.prompt.overflow import fit
from memograft.request import Request, Sampling

__all__ = ["banked", "loaded", "made"]

_NOT_KEPT = "a bank keeps no memory of it: it has no words, or this kind of memory is not kept for a document"
_NOT_WRITTEN = "the bank could not write it; a warning says why"


def made(model: Model, documents: tuple[Document, ...], memory: Memory, window: int, task: Task) -> MemoryHandle:
    """Memorize documents without a question; `window` is the number of tokens that the model can process.

    Raises:
        PromptTooLongError: the documents do not fit.
    """
    prompt = _prompt(model, documents, memory, window)
    wanted = Wanted(memory, prompt, 0, documents=documents, task=task)
    segment = _segment(model, wanted)
    filled = prefill(model.backbone, [prompt.ids], model.pad_id, [segment], task.pace, task.given_up)
    model.remember(prompt, filled)
    (brought,) = memory.prepare(model, [wanted], filled, task)
    id = brought.id or content_id(model.fingerprint, memory.kind, memory.to_json(), prompt)
    handle = MemoryHandle.new(model, id, documents, memory, brought.adapter, brought.report)
    if segment is not None and memory.carries and can_join(segment.kv_cache):
        return replace(handle, carried=Carried.of(segment))
    return replace(handle, segment=segment)


def banked(
    model: Model, documents: Sequence[Document], memory: Memory, window: int, task: Task
) -> list[MemoryReport | PromptTooLongError]:
    """Memorize each document by itself in one batch, and put the memories into the model's bank, which it must have.

    Documents whose memories are there are not read.
    """
    found: dict[int, MemoryReport | PromptTooLongError] = {}
    rows, ids = list[Wanted](), list[tuple[str, ...]]()
    for n, document in enumerate(documents):
        try:
            prompt = _prompt(model, (document,), memory, window)
        except PromptTooLongError as error:
            found[n] = error
            continue
        own = memory.kept_as(model, prompt)
        if not own:
            found[n] = MemoryReport(reason=_NOT_KEPT, settings=memory.to_json())
        elif _has(model, own):
            found[n] = MemoryReport(documents=(document.id,), settings=memory.to_json(), reused=True, id=own[0])
        else:
            rows.append(Wanted(memory, prompt, len(rows), documents=(document,), task=task))
            ids.append(own)
    if rows:
        prompts, segments = [row.prompt.ids for row in rows], memory.before(model, rows)
        filled = prefill(model.backbone, prompts, model.pad_id, segments, task.pace, task.given_up)
        new = [n for n in range(len(documents)) if n not in found]
        for n, own, brought in zip(new, ids, memory.prepare(model, rows, filled, task), strict=True):
            report = brought.report or MemoryReport()
            if _has(model, own):
                found[n] = replace(report, id=own[0])
            else:
                said = report.reason if report.rolled_back else None
                found[n] = replace(report, rolled_back=True, reason=said or _NOT_WRITTEN, id="")
    return [found[n] for n in range(len(documents))]


def loaded(model: Model, folder: str | Path, own: Mapping[str, Any], task: Task) -> MemoryHandle:
    """Read a memory that `MemoryHandle.save` wrote; `own` are the model's settings (see `Memory.resolved`).

    Raises:
        MemoryFormatError: the folder is damaged, incomplete or of another model.
    """
    handle = MemoryHandle.load(folder, model.backbone)
    handle = replace(handle, settings=handle.settings.resolved(own))
    if handle.carried is not None:
        return handle
    prompt = model.prompts.build([{"role": "user", "content": "?"}], handle.settings.shown(handle.documents))
    wanted = Wanted(handle.settings, replace(prompt, question=(0, 0)), 0, documents=handle.documents, task=task)
    return replace(handle, segment=_segment(model, wanted))


def _prompt(model: Model, documents: tuple[Document, ...], memory: Memory, window: int) -> Prompt:
    """The prompt of documents without a question; relevance is judged when the memory is used."""
    request, shown = Request("?", sampling=Sampling(max_new_tokens=1)), memory.shown(documents)
    window -= memory.columns(model.prompts, documents)
    return replace(fit(model.prompts, request, shown, window).prompt, question=(0, 0))


def _has(model: Model, ids: Sequence[str]) -> bool:
    return model.bank is not None and all(map(model.bank.has, ids))


def _segment(model: Model, wanted: Wanted) -> Segment | None:
    """The memory's own keys and values, or those of the prompt up to its documents' end, for later requests."""
    (own,) = wanted.memory.before(model, [wanted])
    segment = own or exact(model, wanted.prompt, wanted.task)
    return segment and replace(segment, read=0)
