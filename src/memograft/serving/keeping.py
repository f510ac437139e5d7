"""Make memories for later requests, or read them from a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from memograft.documents import Document
from memograft.memory.base import Memory, Model, Task, Wanted, content_id
from memograft.memory.compact.keys import exact
from memograft.memory.handle import MemoryHandle
from memograft.model.carried import Carried
from memograft.model.kv import Segment, can_join
from memograft.model.prefill import prefill
from memograft.prompt.overflow import fit
from memograft.request import Request, Sampling

__all__ = ["loaded", "made"]


def made(model: Model, documents: tuple[Document, ...], memory: Memory, window: int, task: Task) -> MemoryHandle:
    """Memorize documents without a question; `window` is the number of tokens that the model can process.

    Raises:
        PromptTooLongError: the documents do not fit.
    """
    request, shown = Request("?", sampling=Sampling(max_new_tokens=1)), memory.shown(documents)
    window -= memory.columns(model.prompts, documents)
    # Relevance is judged when the memory is used, because there is no question yet.
    prompt = replace(fit(model.prompts, request, shown, window).prompt, question=(0, 0))
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
    return replace(
        handle, segment=_segment(model, Wanted(handle.settings, prompt, 0, documents=handle.documents, task=task))
    )


def _segment(model: Model, wanted: Wanted) -> Segment | None:
    """The memory's own keys and values, or those of the prompt up to its documents' end, for later requests."""
    (own,) = wanted.memory.before(model, [wanted])
    segment = own or exact(model, wanted.prompt, wanted.task)
    return segment and replace(segment, read=0)
