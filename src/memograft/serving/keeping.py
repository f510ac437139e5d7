"""Make memories for later requests, or read them from a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from memograft.documents import Document
from memograft.memory.base import Memory, Model, Task, Wanted, content_id
from memograft.memory.fastmem.rows import gather
from memograft.memory.handle import MemoryHandle
from memograft.model.kv import Segment
from memograft.model.prefill import prefill, prefill_segment
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
    wanted = Wanted(memory, prompt, 0, documents=documents)
    segment = _segment(model, wanted)
    filled = prefill(model.backbone, [prompt.ids], model.pad_id, [segment])
    model.remember([prompt], filled)
    (brought,) = memory.prepare(model, [wanted], filled, task)
    id = brought.id or content_id(model.fingerprint, memory.kind, memory.to_json(), prompt)
    return MemoryHandle.new(model, id, documents, memory, brought.adapter, brought.report, segment)


def loaded(model: Model, folder: str | Path, own: Mapping[str, Any]) -> MemoryHandle:
    """Read a memory that `MemoryHandle.save` wrote; `own` are the model's settings (see `Memory.resolved`).

    Raises:
        MemoryFormatError: the folder is damaged, incomplete or of another model.
    """
    handle = MemoryHandle.load(folder, model.backbone)
    settings = handle.settings.resolved(own)
    prompt = model.prompts.build([{"role": "user", "content": "?"}], settings.shown(handle.documents))
    segment = _segment(model, Wanted(settings, prompt, 0, documents=handle.documents))
    return replace(handle, settings=settings, segment=segment)


def _segment(model: Model, wanted: Wanted) -> Segment | None:
    """The memory's own keys and values, or those of the prompt up to its documents' end, from the bank if possible."""
    (own,) = wanted.memory.before(model, [wanted])
    if own is not None:
        return own  # type: ignore[no-any-return]
    prompt = model.prompts.build([{"role": "user", "content": "?"}], wanted.prompt.documents)
    ids, known = gather(prompt), model.recalled(prompt)
    if known is not None and known.ids == ids:
        return known
    return prefill_segment(model.backbone, ids) if ids else None
