"""`FastMem`: chooses the documents to memorize, memorizes them together or one by one, and sets the decoding rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from memograft.decoding.cad import Cad
from memograft.decoding.contrast import Contrast
from memograft.decoding.rule import Rule
from memograft.decoding.support import SupportGate
from memograft.errors import SettingsError
from memograft.memory.base import Brought, Memory, Model, Task, Wanted
from memograft.memory.fastmem.compose import compose
from memograft.memory.fastmem.contexts import Context, again, memories
from memograft.memory.fastmem.select import Selection, beside, select
from memograft.memory.fastmem.settings import Selecting, Speaking, Training
from memograft.memory.fastmem.train import Made
from memograft.memory.report import MemoryReport
from memograft.model import config as model_config
from memograft.model.adapter import Adapter
from memograft.model.kv import Prefill, Segment
from memograft.prompt.builder import Prompt

__all__ = ["PRESETS", "FastMem"]

PRESETS = ("faithful", "paper")  # names of class methods of FastMem, for commands

_AGREED = 0.5  # chosen like the constants of `faithful`
_IRRELEVANT = "nothing to memorize: no document is about the question (see `relevance`)"


@dataclass(frozen=True)
class FastMem(Speaking, Selecting, Training, Memory):
    """Memorize a request's documents in a LoRA on the last FFN. `FastMem.paper()` has the settings of the paper.

    Attributes:
        steps: optimiser steps (paper: 10). More steps fit the documents more closely and change the model more.
            "auto": see `AUTOMATIC`.
        learning_rate: of AdamW (paper: 1e-5 on the full FFN). "auto": see `AUTOMATIC`.
        kl_weight: beta, the weight of the KL from the base model (paper: 0.1). Larger values keep the model closer to
            it.
        target_kl: nats per token. Training ends when the KL on the documents reaches this value, even if `steps` are
            left; a last step that went beyond it is scaled back. None: no such end (paper). "auto": see `AUTOMATIC`.
            Ours.
        adapter: "lora" trains low-rank changes, "full" the FFN's weights themselves (paper).
        rank: R of the LoRA; ignored with "full".
        template: where the documents are during training: "prompt", in the request's own prompt (one prefill), or
            "assistant", alone in an assistant turn (paper; needs a second prefill).
        gate: None, or "support": a token that the base model prefers is kept if it occurs in the documents. Ours.
        contrast: alpha of contrastive decoding between the memorized and the base model's distribution (paper's
            "FastMem + CD": 0.5). "adaptive": more where memorizing changes more; see `memograft.decoding.contrast`.
        cad: alpha of context-aware decoding, `Cad(alpha, agreed=0.5)`: the distribution with the documents is
            contrasted with that without them, but for tokens on which they agree. The prompt without documents is one
            more row of the batch. 0 is off. It cannot be combined with the processor `Cad`.
        relevance: documents with a lower relevance to the question stay in the prompt but are not memorized; see
            `memograft.memory.fastmem.relevance`. "auto": see `AUTOMATIC`. None memorizes all documents without judging
            them (paper), and ignores `conflicts`. Ours.
        cad_relevance: context-aware decoding, from `cad` or from the processor `Cad`, is left out if no document has
            this relevance. None: that of `relevance`. Ours.
        conflicts: "first": of relevant documents that contradict each other about the question, only the highest-ranked
            is memorized; see `memograft.memory.fastmem.disagreement`. None memorizes them all (paper). Ours.
        shortlist: number of candidate tokens in the loss; all other tokens form one bucket. The reported KL is then an
            estimate; the reported losses are exact. None uses the whole vocabulary (paper). "auto": see `AUTOMATIC`.
        max_kl: nats per token; a memory with a larger reported KL is rolled back. "auto": see `AUTOMATIC`.
        fallback: also decode the base model's answer, as another row of the batch, and return it if the memorized
            answer repeats itself or does not end and the base model's does neither. Not used when the answer is
            streamed, follows a schema, or has logits processors of its own. Ours.
        weight_decay: of AdamW (the paper's code: 0.01).
        clip_norm: largest norm of a gradient (the paper's code: 1.0); None does not clip.
        seed: of the random LoRA factor A.
        end: also memorize that each document ends, with the token that ends a turn. The paper memorizes the
            text as such a turn, end included. Without it fewer answers end: a document in a prompt shows no end.
        compose: memorize each document by itself and average these memories; see `memograft.memory.fastmem.compose`.
            With a bank, a document is trained once, whatever documents it is retrieved with. Answers that need several
            documents get worse. Ours.

    Raises:
        SettingsError: a value is out of its range.
    """

    kind: ClassVar[str] = "fastmem"

    def __post_init__(self) -> None:
        self._check_training()
        self._check_selecting()
        self._check_speaking()

    @classmethod
    def load(cls, path: str | Path) -> FastMem:
        """Read settings from a file of `save` or `memograft tune`, or from a folder with such a file.

        Raises:
            SettingsError: there is no such file, or its content is not valid.
        """
        try:
            return cls(**model_config.read(path))
        except TypeError as e:
            raise SettingsError(f"{path} has an entry that is no setting of FastMem ({e}); write it again") from e

    def save(self, path: str | Path, about: Mapping[str, Any] | None = None) -> Path:
        """Write these settings to a file, or to a folder as memograft_config.json; `about` is stored as their origin.

        In a model's folder, the file supplies the values of settings that a request leaves at "auto". It may have only
        those.
        """
        values = asdict(self)
        return model_config.write(path, {n: v for n, v in values.items() if v != getattr(FastMem(), n)}, about)

    @classmethod
    def paper(cls, **changes: Any) -> FastMem:
        """The settings of the paper, with the constants that only its code shows; `changes` override them."""
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
    def faithful(cls, **changes: Any) -> FastMem:
        """The defaults, and context-aware decoding where a page is clearly about the question: answers follow the page
        more often. `changes` override them.

        The constants were chosen on the tuning splits with SmolLM2-135M-Instruct; docs/method.md has the comparison.
        """
        return cls(**{"cad": 0.5, "cad_relevance": 0.7, **changes})

    @property
    def own_cad(self) -> Cad | None:
        """The context-aware decoding of `cad`."""
        return Cad(self.cad, _AGREED) if self.cad else None

    def kept_as(self, model: Model, prompt: Prompt) -> tuple[str, ...]:
        """The id of the memory of all documents of the prompt; with `compose`, of a prompt's only document."""
        if len(prompt.context) < 2:
            return ()
        return (Context.of(model, prompt, self, replace(self, compose=False).training).id,)

    @classmethod
    def beside(cls, model: Model, rows: Sequence[Wanted]) -> list[tuple[tuple[int, ...], Segment] | None]:
        """The question without documents, if relevance is judged; see `Memory.beside`."""
        return beside(model, rows)

    @classmethod
    def prepare(cls, model: Model, rows: Sequence[Wanted], filled: Prefill, task: Task) -> list[Brought]:
        """An adapter for each row whose documents are about its question; see `Memory.prepare`."""
        selections = select(model, rows, filled)
        task.given_up()  # others may get a token here
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
            about = row.memory.contrasts(selections[n].relevance)
            brought.append(Brought(adapter, rules, row.memory.fallback, report, id, about))
        return brought


def _rules(memory: FastMem, prompt: Prompt) -> list[Rule]:
    """Rules that combine the memorized and the base model's distributions. The gate comes after the contrast."""
    rules: list[Rule] = []
    if memory.contrast:
        rules.append(Contrast(memory.contrast))
    if memory.gate == "support":
        rules.append(SupportGate(prompt.ids[t] for t in prompt.context))
    return rules


def _said(row: Wanted, selection: Selection, adapter: Adapter | None) -> dict[str, Any]:
    """The report's fields about documents. A kept memory may be of other documents than those in the prompt."""
    if row.kept is not None and (adapter is not None or not selection.relevance):
        return {"relevance": selection.relevance, "warnings": selection.warnings}
    return selection.said


def _kept(row: Wanted, selection: Selection) -> Made:
    """Use a handle's memory, unless none of its documents is relevant to the question."""
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
