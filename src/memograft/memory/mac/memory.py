"""`Mac`: answer from a bank of modulations, with or without documents in the prompt."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from memograft.documents import Document
from memograft.errors import SettingsError
from memograft.memory.base import Brought, Model, Task, Wanted
from memograft.memory.compact.keys import exact
from memograft.memory.compact.memory import Kept
from memograft.memory.fastmem.memory import FastMem
from memograft.memory.fastmem.relevance import LEAD, can_judge, relevances
from memograft.memory.fastmem.settings import check_relevance
from memograft.memory.gist.compress import check_model, in_front, opening
from memograft.memory.mac.bank import MacBank, mac_of, version
from memograft.memory.mac.networks import Lora
from memograft.memory.mac.weights import MacWeights, prefix
from memograft.model.adapter import Adapter, added
from memograft.model.backbone import Backbone
from memograft.model.kv import Prefill, Segment, chain, cut
from memograft.model.prefill import prefill
from memograft.prompt.builder import Prompt, PromptBuilder

__all__ = ["Mac"]


@dataclass(frozen=True)
class Mac(Kept):
    """Answer from all documents of a bank, of which only their modulations are kept (MAC, arXiv 2403.04317).

    The question attends to the bank, and what it finds becomes a prefix of keys and values in front of the prompt, or a
    LoRA on the last FFN: whichever the bank's MAC was trained to make. If the request has documents too, they are
    judged: if one is about the question, the bank is not used, and otherwise the documents are left out. Train a MAC
    with `memograft train mac`, and add documents with `MacBank`.

    Args:
        bank: folder of a `MacBank`.
        group: how many modulations are read at a time. Answers are the same; large banks need less memory beside
            their modulations, and the question takes longer. None reads all at once.
        relevance: the request's documents are used instead of the bank if one of them has this relevance to the
            question; see `memograft.memory.fastmem.relevance`. "auto": as `FastMem.relevance`. None judges nothing, and
            uses the bank and the documents together (paper). Ours.
        memory: what else is done with the documents in the prompt, e.g. FastMem().

    Raises:
        SettingsError: a value is out of its range.
    """

    bank: str
    group: int | None = None
    relevance: float | Literal["auto"] | None = "auto"
    memory: FastMem | None = field(default=None, kw_only=True)

    kind: ClassVar[str] = "mac"
    carries: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "bank", str(self.bank))  # a JSON value
        if not self.bank:
            raise SettingsError("`bank` must be the folder of a MacBank, got ''; see `memograft mac add`")
        group: object = self.group
        if group is not None and (not isinstance(group, int) or isinstance(group, bool) or group < 2):
            raise SettingsError(f"`group` must be a whole number of at least 2, or None, got {self.group!r}")
        check_relevance("relevance", self.relevance, "always use the bank")

    def resolved(self, own: Mapping[str, object] | None = None) -> Self:
        """Replace "auto" here and in `memory`."""
        made = super().resolved(own)
        return replace(made, relevance=FastMem(relevance=self.relevance).resolved(own).relevance)

    def check(self, backbone: Backbone, fingerprint: str) -> None:
        """Refuse a bank of another model.

        Raises:
            MemoryFormatError: the bank is missing or damaged.
            SettingsError: it belongs to another model.
            UnsupportedModelError: the model cannot have learned tokens, or FastMem does not support it.
        """
        super().check(backbone, fingerprint)
        found = mac_of(self.bank).fingerprint
        if found != fingerprint:
            raise SettingsError(
                f"the bank in {self.bank} belongs to another model (fingerprint {found}, this model's is "
                f"{fingerprint}); use that model, or make a bank for this one"
            )
        check_model(backbone)

    def columns(self, prompts: PromptBuilder, documents: tuple[Document, ...]) -> int:  # noqa: ARG002
        """W + T, the position of the token behind a prefix; 0 without one."""
        mac = mac_of(self.bank)
        return mac.window + mac.tokens if mac.modulation == "prefix" else 0

    @classmethod
    def before(cls, model: Model, rows: Sequence[Wanted]) -> list[Segment | None]:
        """The prefix of each row's question; without one, as `Memory.before`.

        There is none without a question, with an empty bank, if the bank's MAC makes a LoRA, or if a document is about
        the question. Then the documents were read to find that out, and are not read again. If none is, they are left
        out of the prompt.
        """
        segments, rows = super().before(model, rows), list(rows)
        if judged := [n for n, row in enumerate(rows) if _is_judged(model, row)]:
            prompts, task = [rows[n].prompt for n in judged], rows[judged[0]].task
            known = [segments[n] or model.recalled(prompt) for n, prompt in zip(judged, prompts, strict=True)]
            ids, lead = [prompt.ids for prompt in prompts], model.prompts.continued(LEAD)
            filled = prefill(model.backbone, ids, model.pad_id, known, task.pace, task.given_up)
            found = relevances(model.backbone, filled, range(len(judged)), prompts, lead)
            for place, (n, each) in enumerate(zip(judged, found, strict=True)):
                hide = rows[n].hide
                rows[n].relevance[:] = each
                if max(each) < rows[n].memory.relevance and hide is not None:
                    rows[n], segments[n] = replace(rows[n], prompt=hide()), None
                else:
                    segments[n] = _documents(model, prompts[place], filled, place) or known[place]
        asked = _asked(model, rows, "prefix")
        for n, own in zip(asked, _found(model, [rows[n] for n in asked]), strict=True):
            segments[n] = _segment(model, rows[n], own)
        return segments

    @classmethod
    def prepare(cls, model: Model, rows: Sequence[Wanted], filled: Prefill, task: Task) -> list[Brought]:
        """What `memory` brings, or nothing, and the LoRA of each row's question if the bank's MAC makes one.

        FastMem is trained on the documents' states without a prefix, as alone: its id does not depend on bank and
        question.
        """
        x, residual = filled.x, filled.residual
        for row in rows:
            if row.memory.memory is not None and filled.shifts[row.row]:
                if x is filled.x:
                    x, residual = x.clone(), residual.clone()
                whole = exact(model, row.prompt, task)
                if whole is not None and whole.x is not None and whole.residual is not None:
                    columns = filled.columns(row.row, range(len(whole.ids)))
                    x[row.row, columns], residual[row.row, columns] = whole.x[0].to(x), whole.residual[0].to(residual)
        brought = super().prepare(model, rows, replace(filled, x=x, residual=residual), task)
        for n, row in enumerate(rows):
            report = brought[n].report
            if _is_judged(model, row) and row.memory.memory is None and report is not None:
                report = replace(report, reason=_UNUSED, relevance=tuple(row.relevance))
            elif row.documents and not row.prompt.documents and report is not None:
                left_out = tuple(document.id for document in row.documents)
                report = replace(report, left_out=left_out, relevance=tuple(row.relevance))
            brought[n] = replace(brought[n], report=report)
        changing = _asked(model, rows, "lora")
        for n, found in zip(changing, _found(model, [rows[n] for n in changing]), strict=True):
            if found is not None:
                own = brought[n].adapter
                brought[n] = replace(brought[n], adapter=found.lora if own is None else added([own, found.lora]))
        return brought

    @property
    def said(self) -> str:
        """Why a report has no losses."""
        return f"answered from the bank in {self.bank}, and nothing was trained"


_UNUSED = "answered from the documents and not from the bank, because one of them is about the question"


def _is_judged(model: Model, row: Wanted) -> bool:
    """Whether the documents decide if the bank is used. Where none is about the question, `before` hides them."""
    judges = row.memory.relevance is not None and can_judge(row.prompt)
    return judges and len(_bank(model, row.memory.bank).tokens) > 0


def _asked(model: Model, rows: Sequence[Wanted], modulation: str) -> list[int]:
    """The rows that are answered from banks whose MACs make this."""
    return [
        n
        for n, row in enumerate(rows)
        if mac_of(row.memory.bank).modulation == modulation and not _is_judged(model, row)
    ]


def _documents(model: Model, prompt: Prompt, filled: Prefill, row: int) -> Segment | None:
    """The keys and values of a prompt up to the end of its documents; None if they cannot be cut out of the cache."""
    end = max(end for _, end in prompt.spans)
    piece = cut(filled, row, 0, end)
    return None if piece is None else chain(model.backbone, prompt.ids[:end], [piece], end - filled.cached[row])


_BANKS = 4  # whose modulations are in memory, for a model


@dataclass(frozen=True)
class _Loaded:
    version: str
    weights: MacWeights
    tokens: Tensor  # (K, T, D) float32


_loaded: weakref.WeakKeyDictionary[nn.Module, dict[str, _Loaded]] = weakref.WeakKeyDictionary()


def _bank(model: Model, path: str) -> _Loaded:
    """A bank, which is read again if it has changed."""
    known, now = _loaded.setdefault(model.backbone.model, {}), f"{version(path)} {model.backbone.device}"
    found = known.pop(path, None)
    if found is None or found.version != now:
        bank = MacBank(path)
        tokens = bank.modulations().float().to(model.backbone.device)
        found = _Loaded(now, bank.weights(model.backbone), tokens)
    known[path] = found  # the most recently used comes last
    while len(known) > _BANKS:
        known.pop(next(iter(known)), None)
    return found


@dataclass(frozen=True)
class _Found:
    """What a question found in a bank, after modulation (1, T, size)."""

    weights: MacWeights
    flat: Tensor

    @property
    def lora(self) -> Adapter:
        """Of the last FFN."""
        assert isinstance(self.weights.form, Lora)
        pairs = self.weights.form.of(self.flat)
        return Adapter({name: a[0] for name, (a, _) in pairs.items()}, {name: b[0] for name, (_, b) in pairs.items()})


@torch.no_grad()
def _found(model: Model, rows: Sequence[Wanted]) -> list[_Found | None]:
    """For each row what its question finds; None without a question, or if the bank is empty.

    Rows with the same settings share a pass, and each is aggregated alone.
    """
    found: list[_Found | None] = [None] * len(rows)
    asked = [(row.memory.bank, row.memory.group, _question(row.prompt)) for row in rows]
    for bank, group in dict.fromkeys((bank, group) for bank, group, question in asked if question):
        loaded = _bank(model, bank)
        if not len(loaded.tokens):
            continue
        own = [n for n, (b, g, question) in enumerate(asked) if (b, g) == (bank, group) and question]
        weights, networks = loaded.weights, loaded.weights.networks
        prompts = [model.prompts.build([{"role": "user", "content": asked[n][2]}]) for n in own]
        states = weights.questions(model.backbone, [p.ids[-weights.window :] for p in prompts], model.pad_id)
        for n, state in zip(own, states, strict=True):
            rows[n].task.pause("looked for in a bank")
            found[n] = _Found(weights, networks.modulate(networks.aggregate(state[None], loaded.tokens, group=group)))
    return found


def _segment(model: Model, row: Wanted, found: _Found | None) -> Segment | None:
    """The prefix of a prompt."""
    if found is None or isinstance(found.weights.form, Lora):
        return None
    weights, front = found.weights, opening(model.prompts, row.prompt)
    layers = found.weights.form.of(found.flat)
    # The opening comes last in the cache: a segment's tokens are its last columns, and positions tell the order.
    pieces = [prefix(model.backbone, layers), in_front(model.backbone, front, weights.window)]
    return replace(chain(model.backbone, front.ids[: front.spared], pieces), end=weights.end)


def _question(prompt: Prompt) -> str:
    """The last user message, as text."""
    start, end = prompt.question
    return prompt.text[prompt.offsets[start][0] : prompt.offsets[end - 1][1]] if end > start else ""
