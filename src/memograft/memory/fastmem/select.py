"""Which documents of each request are memorized: those that are about the question, and of rivals only the first.

The others stay in the prompt. Running out of memory here costs a request the selection, not its memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from memograft.memory.fastmem.disagreement import disagreements
from memograft.memory.fastmem.relevance import LEAD, can_judge, relevances
from memograft.memory.fastmem.settings import FastMem
from memograft.memory.fastmem.statements import statements
from memograft.memory.handle import MemoryHandle
from memograft.model.backbone import Backbone
from memograft.model.prefill import Prefill
from memograft.prompt.builder import Prompt, PromptBuilder

__all__ = ["Selection", "select"]


@dataclass(frozen=True)
class Selection:
    """What of a prompt is memorized.

    Attributes:
        prompt: the whole of it.
        about: the same with only the chosen documents marked.
        relevance: of every document; empty if it was not judged.
        disagree: ids of documents that contradict each other.
    """

    prompt: Prompt
    about: Prompt
    relevance: tuple[float, ...] = ()
    disagree: tuple[tuple[str, str], ...] = ()

    @property
    def said(self) -> dict[str, Any]:
        """What a report says of it."""
        kept = {id(d) for d in self.about.documents}
        return {
            "documents": tuple(d.id for d in self.about.documents),
            "left_out": tuple(d.id for d in self.prompt.documents if id(d) not in kept),
            "relevance": self.relevance,
            "disagree": self.disagree,
        }


def select(
    backbone: Backbone,
    builder: PromptBuilder,
    wanted: Sequence[FastMem | MemoryHandle | None],
    prompts: Sequence[Prompt],
    filled: Prefill,
) -> list[Selection]:
    """One selection for each of the prompts that `filled` was made of."""
    selections = [Selection(prompt, prompt) for prompt in prompts]
    judged = [n for n, memory in enumerate(wanted) if memory is not None and _judged(memory, prompts[n])]
    try:
        lead = builder.continued(LEAD)
        found = relevances(backbone, filled, judged, [prompts[n] for n in judged], lead) if judged else []
        for n, relevance in zip(judged, found, strict=True):
            selections[n] = _selection(backbone, filled, n, wanted[n], prompts[n], relevance)
    except torch.OutOfMemoryError:
        pass
    return selections


def _judged(memory: FastMem | MemoryHandle, prompt: Prompt) -> bool:
    # A handle whose documents are not the prompt's own cannot be judged by those, and one without weights need not be.
    own = not isinstance(memory, MemoryHandle) or (memory.adapter is not None and memory.documents == prompt.documents)
    return _settings(memory).relevance is not None and own and can_judge(prompt)


def _selection(
    backbone: Backbone, filled: Prefill, row: int, memory: Any, prompt: Prompt, relevance: tuple[float, ...]
) -> Selection:
    settings = _settings(memory)
    kept = [d for d, r in enumerate(relevance) if settings.threshold is None or r >= settings.threshold]
    selection = Selection(prompt, _only(prompt, kept), relevance)
    # A handle holds all of its documents or none: there is nothing to choose among them.
    if settings.conflicts is None or len(kept) < 2 or isinstance(memory, MemoryHandle):
        return selection
    stated = statements(backbone, filled, row, prompt, kept)
    return _first(selection, disagreements(backbone, filled, row, selection.about, stated))


def _only(prompt: Prompt, kept: Sequence[int]) -> Prompt:
    return replace(
        prompt, spans=tuple(prompt.spans[n] for n in kept), documents=tuple(prompt.documents[n] for n in kept)
    )


def _first(selection: Selection, pairs: Sequence[tuple[int, int]]) -> Selection:
    """Without the documents that contradict one that ranks higher and is itself memorized."""
    dropped: set[int] = set()
    for a, b in sorted(pairs):
        if a not in dropped:
            dropped.add(b)
    ids = [d.id for d in selection.about.documents]
    kept = [n for n in range(len(ids)) if n not in dropped]
    disagree = tuple((ids[a], ids[b]) for a, b in pairs)
    return replace(selection, about=_only(selection.about, kept), disagree=disagree)


def _settings(memory: Any) -> FastMem:
    settings: FastMem = memory.settings if isinstance(memory, MemoryHandle) else memory
    return settings
