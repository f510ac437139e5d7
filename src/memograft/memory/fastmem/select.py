"""Choose the documents of each request to memorize: the relevant ones, and of contradicting ones the first.

All documents stay in the prompt. If the selection runs out of memory, all documents are memorized.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from memograft.memory.base import Model, Wanted
from memograft.memory.fastmem.disagreement import disagreements
from memograft.memory.fastmem.relevance import LEAD, can_judge, relevances
from memograft.memory.fastmem.settings import Selecting
from memograft.memory.fastmem.statements import statements
from memograft.memory.fastmem.tails import behind_lead
from memograft.model.backbone import Backbone
from memograft.model.kv import Prefill, Segment
from memograft.prompt.builder import Prompt

__all__ = ["Selection", "beside", "select"]


@dataclass(frozen=True)
class Selection:
    """The documents of a prompt that are memorized.

    Attributes:
        prompt: the prompt with all documents marked.
        about: the same prompt with only the chosen documents marked.
        relevance: of every document; empty if it was not judged.
        disagree: pairs of ids of documents that contradict each other.
        warnings: what failed during the selection.
    """

    prompt: Prompt
    about: Prompt
    relevance: tuple[float, ...] = ()
    disagree: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()

    def only(self, kept: Sequence[int], *warnings: str) -> Selection:
        """Keep only these of the chosen documents, given by index, and add warnings."""
        return replace(self, about=_only(self.about, kept), warnings=(*self.warnings, *warnings))

    @property
    def said(self) -> dict[str, Any]:
        """The selection as fields of `MemoryReport`."""
        kept = {id(d) for d in self.about.documents}
        return {
            "documents": tuple(d.id for d in self.about.documents),
            "left_out": tuple(d.id for d in self.prompt.documents if id(d) not in kept),
            "relevance": self.relevance,
            "disagree": self.disagree,
            "warnings": self.warnings,
        }


def select(model: Model, rows: Sequence[Wanted], filled: Prefill) -> list[Selection]:
    """One selection for each row."""
    selections = [Selection(row.prompt, row.prompt) for row in rows]
    judged = [n for n, row in enumerate(rows) if _judged(row)]
    backbone = model.backbone
    try:
        lead, asked = model.prompts.continued(LEAD), [rows[n] for n in judged]
        led = [row.beside for row in asked]
        prompts = [row.prompt for row in asked]
        found = relevances(backbone, filled, [row.row for row in asked], prompts, lead, led) if asked else []
        for n, relevance in zip(judged, found, strict=True):
            selections[n] = _selection(backbone, filled, rows[n], relevance)
    except torch.OutOfMemoryError as e:
        warning = f"out of memory while choosing documents, so all of them count as relevant: {e}"
        for n in judged:
            if selections[n].prompt is selections[n].about and not selections[n].relevance:
                selections[n] = replace(selections[n], warnings=(warning,))
    return selections


def beside(model: Model, rows: Sequence[Wanted]) -> list[tuple[tuple[int, ...], Segment] | None]:
    """The question of each row that is judged, behind LEAD; see `Memory.beside`."""
    lead = model.prompts.continued(LEAD)
    return [behind_lead(model.backbone, row.prompt, lead) if _judged(row) else None for row in rows]


def _judged(row: Wanted) -> bool:
    # A kept memory is judged by its own documents only, and not at all if it has no weights.
    kept = row.kept
    own = kept is None or (kept.adapter is not None and kept.documents == row.prompt.documents)
    return row.memory.relevance is not None and own and can_judge(row.prompt)


def _selection(backbone: Backbone, filled: Prefill, row: Wanted, relevance: tuple[float, ...]) -> Selection:
    settings: Selecting = row.memory
    kept = [d for d, r in enumerate(relevance) if settings.threshold is None or r >= settings.threshold]
    selection = Selection(row.prompt, _only(row.prompt, kept), relevance)
    # A kept memory has all of its documents or none, so there is nothing to choose.
    if settings.conflicts is None or len(kept) < 2 or row.kept is not None:
        return selection
    stated = statements(backbone, filled, row.row, row.prompt, kept)
    return _first(selection, disagreements(backbone, filled, row.row, selection.about, stated))


def _only(prompt: Prompt, kept: Sequence[int]) -> Prompt:
    return replace(
        prompt, spans=tuple(prompt.spans[n] for n in kept), documents=tuple(prompt.documents[n] for n in kept)
    )


def _first(selection: Selection, pairs: Sequence[tuple[int, int]]) -> Selection:
    """Remove documents that contradict a higher-ranked one which is itself memorized."""
    dropped: set[int] = set()
    for a, b in sorted(pairs):
        if a not in dropped:
            dropped.add(b)
    ids = [d.id for d in selection.about.documents]
    kept = [n for n in range(len(ids)) if n not in dropped]
    disagree = tuple((ids[a], ids[b]) for a, b in pairs)
    return replace(selection.only(kept), disagree=disagree)
