"""`FastMem` as a memory: which of a batch's documents are memorized, together or each by itself, and how they speak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from memograft.decoding.contrast import Contrast
from memograft.decoding.rule import Rule
from memograft.decoding.support import SupportGate
from memograft.errors import SettingsError
from memograft.memory.base import Brought, Memory, Model, Task, Wanted
from memograft.memory.fastmem.compose import compose
from memograft.memory.fastmem.contexts import Context, again, memories
from memograft.memory.fastmem.select import Selection, select
from memograft.memory.fastmem.settings import Selecting, Speaking, Training
from memograft.memory.fastmem.train import Made
from memograft.memory.report import MemoryReport
from memograft.model import config as model_config
from memograft.model.adapter import Adapter
from memograft.model.kv import Prefill
from memograft.prompt.builder import Prompt

__all__ = ["FastMem"]

_IRRELEVANT = "nothing to memorize: no document is about the question (see `relevance`)"


@dataclass(frozen=True)
class FastMem(Speaking, Selecting, Training, Memory):
    """How a request's documents are memorized. The defaults suit a LoRA; `FastMem.paper()` is the published recipe.

    Attributes:
        steps: optimiser steps (paper: 10). More follow the documents more closely, and move the model further.
        learning_rate: of AdamW (paper: 1e-5 on the full FFN). "auto": see `AUTOMATIC`.
        kl_weight: beta, how strongly the model is held where it was (paper: 0.1).
        target_kl: nats per token; memorizing ends where the model has moved this far on the documents, whatever is left
            of `steps`, and takes back what the last step did too much. None has no such end (paper). "auto": see
            `AUTOMATIC`. Ours.
        adapter: "lora" trains low-rank changes, "full" the FFN's weights themselves (paper).
        rank: R of the LoRA; ignored by "full".
        template: where the documents are memorized: "prompt", where they stand (one prefill), or "assistant", alone as
            an assistant turn (paper; a second prefill).
        gate: None, or "support": the base model's choice stands wherever that token occurs in the documents. Ours.
        contrast: alpha, how far answers are pushed from the base model's distribution (paper's "FastMem + CD": 0.5).
        relevance: documents that are less about the question than this are left in the prompt but not memorized; see
            `memograft.memory.fastmem.relevance`. "auto": see `AUTOMATIC`; None judges nothing and memorizes all
            (paper), whatever `conflicts` says. Ours.
        conflicts: "first": of relevant documents that contradict each other in what is asked, only the highest-ranked
            one is memorized; see `memograft.memory.fastmem.disagreement`. None memorizes them all (paper). Ours.
        shortlist: candidate tokens a step looks at, the rest of the vocabulary being one bucket; None looks at all
            (paper). "auto": see `AUTOMATIC`.
        max_kl: nats per token; a memory that moved the model further is rolled back. "auto": see `AUTOMATIC`.
        fallback: decode the base model's own answer beside the memorized one, as a further row of the batch, and give
            that where the memorized one repeats itself or does not end, and the base model's does neither. Not where
            the answer is streamed, or follows a schema or logits processors of the request's own. Ours.
        weight_decay: of AdamW (paper, as it really ran: 0.01).
        clip_norm: largest norm of a gradient (paper, as it really ran: 1.0); None does not clip.
        seed: of the LoRA's first factor.
        compose: memorize each document by itself and join these memories, instead of all documents together; see
            `memograft.memory.fastmem.compose`. With a bank, a document that was memorized before is not trained again,
            whatever its company; answers from several documents are worse. Ours.

    Raises:
        SettingsError: a value that can never work.
    """

    kind: ClassVar[str] = "fastmem"

    def __post_init__(self) -> None:
        self._check_training()
        self._check_selecting()
        self._check_speaking()

    @classmethod
    def load(cls, path: str | Path) -> FastMem:
        """Settings from a file of `save` or `memograft tune`, or from the folder that holds one.

        Raises:
            SettingsError: there is none, or it is no such file.
        """
        try:
            return cls(**model_config.read(path))
        except TypeError as e:
            raise SettingsError(f"{path} holds something that is no setting of FastMem ({e}); write it anew") from e

    def save(self, path: str | Path, about: Mapping[str, Any] | None = None) -> Path:
        """Write these settings to a file, or to a folder as memograft_config.json; `about` says where they come from.

        In a model's folder they stand in for what a request leaves at "auto", and may hold only such settings.
        """
        values = asdict(self)
        return model_config.write(path, {n: v for n, v in values.items() if v != getattr(FastMem(), n)}, about)

    @classmethod
    def paper(cls, **changes: Any) -> FastMem:
        """The reference recipe, constant by constant, hidden ones included; `changes` override."""
        recipe = {
            "steps": 10,
            "learning_rate": 1e-5,
            "kl_weight": 0.1,
            "adapter": "full",
            "template": "assistant",
            "target_kl": None,
            "relevance": None,
            "conflicts": None,
            "shortlist": None,
            "max_kl": 10.0,
            "fallback": False,
            "weight_decay": 0.01,
            "clip_norm": 1.0,
        }
        return cls(**{**recipe, **changes})

    @classmethod
    def prepare(cls, model: Model, rows: Sequence[Wanted], filled: Prefill, task: Task) -> list[Brought]:
        """An adapter for each row whose documents are about its question; see `Memory.prepare`."""
        selections = select(model, rows, filled)
        made: dict[int, Made] = {}
        contexts: dict[int, Context] = {}
        for n, (row, selection) in enumerate(zip(rows, selections, strict=True)):
            if row.kept is not None:
                made[n] = _kept(row, selection)
            elif len(selection.about.context) < 2:
                made[n] = (None, _nothing(selection))
            else:
                contexts[n] = Context.of(model, selection.about, row.memory, row.memory.training, row.row)
        composed = [n for n in contexts if rows[n].memory.compose]
        whole = {n: context for n, context in contexts.items() if n not in composed}
        found = memories(model, whole.values(), filled, task)
        made |= {n: found[context.id] for n, context in whole.items()}
        joined = compose(model, [rows[n] for n in composed], [selections[n] for n in composed], filled, task)
        for n, (selection, result) in zip(composed, joined, strict=True):
            selections[n], made[n] = selection, result
        brought = []
        for n, row in enumerate(rows):
            adapter, report = made[n]
            report = replace(report, settings=asdict(row.memory), **_said(row, selections[n], adapter))
            rules = _rules(row.memory, row.prompt)
            id = contexts[n].id if n in contexts else ""
            brought.append(Brought(adapter, rules, row.memory.fallback, report, id))
        return brought


def _rules(memory: FastMem, prompt: Prompt) -> list[Rule]:
    """How the memorized distribution and the base model's are combined; a gate decides over what a contrast says."""
    rules: list[Rule] = []
    if memory.contrast > 0:
        rules.append(Contrast(memory.contrast))
    if memory.gate == "support":
        rules.append(SupportGate(prompt.ids[t] for t in prompt.context))
    return rules


def _said(row: Wanted, selection: Selection, adapter: Adapter | None) -> dict[str, Any]:
    """What a report says of the documents; what is kept may be of others than those in the prompt."""
    if row.kept is not None and (adapter is not None or not selection.relevance):
        return {"relevance": selection.relevance, "warnings": selection.warnings}
    return selection.said


def _kept(row: Wanted, selection: Selection) -> Made:
    """A handle's memory, unless none of its documents is about the question."""
    assert row.kept is not None
    report = again(row.kept)
    if not selection.relevance or selection.about.documents:
        return row.kept.adapter, report
    return None, replace(report, reason=_IRRELEVANT)


def _nothing(selection: Selection) -> MemoryReport:
    reason = _IRRELEVANT
    if len(selection.about.documents) == len(selection.prompt.documents):
        there = f"documents of {len(selection.prompt.context)} tokens" if selection.prompt.documents else "no documents"
        reason = f"nothing to memorize: the request has {there}"
    return MemoryReport(reason=reason)
