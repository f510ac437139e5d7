"""Make the memories of a batch's contexts: deduplicate, look up in the bank, and train the rest together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from memograft.memory.base import Memory, Model, Task, content_id
from memograft.memory.fastmem.rows import TrainingRows, context_rows, merge
from memograft.memory.fastmem.settings import Training
from memograft.memory.fastmem.train import Made, memorize
from memograft.memory.handle import MemoryHandle
from memograft.memory.report import MemoryReport
from memograft.model.kv import Prefill
from memograft.model.prefill import prefill
from memograft.prompt.builder import Prompt

__all__ = ["Context", "again", "memories", "rows_of"]


@dataclass(frozen=True)
class Context:
    """The input of one memory.

    Attributes:
        id: see `content_id`.
        prompt: the prompt whose marked documents are memorized.
        memory: the settings.
        training: the subset of the settings that determines the weights.
        row: the prompt's row in the batch's prefill; None if the prompt needs a prefill of its own.
    """

    id: str
    prompt: Prompt
    memory: Memory
    training: Training
    row: int | None

    @classmethod
    def of(cls, model: Model, prompt: Prompt, memory: Memory, training: Training, row: int | None = None) -> Context:
        """Make the context of a prompt's marked documents, placed as `training.template` asks."""
        if training.template == "assistant":
            prompt, row = model.prompts.as_assistant(prompt.documents), None
        id = content_id(model.fingerprint, memory.kind, asdict(training), prompt)
        return cls(id, prompt, memory, training, row)


def memories(model: Model, contexts: Iterable[Context], filled: Prefill, task: Task) -> dict[str, Made]:
    """Return the memory of each context by its id. New ones are put in the model's bank."""
    by_id: dict[str, Context] = {}
    for context in contexts:
        by_id.setdefault(context.id, context)
    made = {id: kept for id in by_id if (kept := _fetched(model, id)) is not None}
    new: dict[Training, list[Context]] = {}
    for id, context in by_id.items():
        if id not in made:
            new.setdefault(context.training, []).append(context)
    batches = list(new.values())
    while batches:
        alike, results, reason = batches.pop(), None, ""
        try:
            rows, training = rows_of(model, alike, filled), alike[0].training
            results = memorize(model.backbone, rows, training, cancelled=task.given_up, progress=task.progress)
        except torch.OutOfMemoryError as e:
            reason = f"out of memory while memorizing: {e}"
        # Outside the handler, because the exception's traceback keeps the tensors alive.
        if results is None and len(alike) > 1:
            batches += [[context] for context in alike]  # retry one at a time, which needs less memory
            continue
        for context, result in zip(
            alike, results or [(None, MemoryReport(rolled_back=True, reason=reason))], strict=True
        ):
            made[context.id] = result
            # Memories that were cancelled or ran out of memory are not kept.
            if model.bank is not None and result[1].losses and not task.given_up():
                handle = MemoryHandle.new(model, context.id, context.prompt.documents, context.memory, *result)
                model.bank.put(handle)
                made[context.id] = (handle.adapter, handle.report)
    return made


def rows_of(model: Model, contexts: Sequence[Context], filled: Prefill) -> TrainingRows:
    """Training rows of all contexts, in order. Contexts that are not in `filled` are prefilled here, in one pass."""
    apart = [context.prompt.ids for context in contexts if context.row is None]
    training = contexts[0].training
    end = model.prompts.turn_end if training.end and training.template == "prompt" else None
    own, places = prefill(model.backbone, apart, model.pad_id) if apart else filled, iter(range(len(apart)))
    return merge(
        [
            context_rows(own, next(places), context.prompt, end)
            if context.row is None
            else context_rows(filled, context.row, context.prompt, end)
            for context in contexts
        ]
    )


def again(handle: MemoryHandle) -> MemoryReport:
    """The report of a memory that is reused."""
    return replace(handle.report, steps=0, seconds=0.0, reused=True)


def _fetched(model: Model, id: str) -> Made | None:
    """Look an id up in the model's bank."""
    handle = model.bank.get(id, model.backbone) if model.bank is not None else None
    return None if handle is None else (handle.adapter, again(handle))
