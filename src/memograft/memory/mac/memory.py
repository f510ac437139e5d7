"""`Mac`: answer from a bank of modulations, with or without documents in the prompt."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from memograft.documents import Document
from memograft.errors import SettingsError
from memograft.memory.base import Brought, Model, Task, Wanted
from memograft.memory.compact.keys import exact
from memograft.memory.compact.memory import Kept
from memograft.memory.fastmem.memory import FastMem
from memograft.memory.gist.compress import check_model, in_front, opening
from memograft.memory.mac.bank import MacBank, mac_of, version
from memograft.memory.mac.networks import hierarchical
from memograft.memory.mac.weights import MacWeights, prefix
from memograft.model.backbone import Backbone
from memograft.model.kv import Prefill, Segment, chain
from memograft.prompt.builder import Prompt, PromptBuilder

__all__ = ["Mac"]


@dataclass(frozen=True)
class Mac(Kept):
    """Answer from all documents of a bank, of which only their modulations are kept (MAC, arXiv 2403.04317).

    The question attends to the bank, and what it finds becomes a prefix of keys and values in front of the prompt. The
    prompt has the request's documents too, if it has any. Train a MAC with `memograft train mac`, and add documents
    with `MacBank`.

    Args:
        bank: folder of a `MacBank`.
        group: how many modulations are aggregated at once (M); their results are aggregated again. None takes all at
            once. Use a group only with a MAC that was trained in groups (`--grouped`).
        memory: what else is done with the documents in the prompt, e.g. FastMem().

    Raises:
        SettingsError: a value is out of its range.
    """

    bank: str
    group: int | None = None
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
        """W + T, the position of the token behind the prefix."""
        mac = mac_of(self.bank)
        return mac.window + mac.tokens

    @classmethod
    def before(cls, model: Model, rows: Sequence[Wanted]) -> list[Segment | None]:
        """The prefix of each row's question. Rows with the same settings share a pass, and each is aggregated alone.

        There is none without a question, or if the bank is empty.
        """
        segments: list[Segment | None] = [None] * len(rows)
        asked = [(n, row.memory.bank, row.memory.group, _question(row.prompt)) for n, row in enumerate(rows)]
        for bank, group in dict.fromkeys((bank, group) for _, bank, group, _ in asked):
            own = [(n, question) for n, b, g, question in asked if (b, g) == (bank, group) and question]
            made = _segments(model, bank, group, [(rows[n].prompt, question) for n, question in own])
            for (n, _), segment in zip(own, made, strict=True):
                segments[n] = segment
        return segments

    @classmethod
    def prepare(cls, model: Model, rows: Sequence[Wanted], filled: Prefill, task: Task) -> list[Brought]:
        """What `memory` brings, or nothing; see `Memory.prepare`.

        It is trained on the documents' states without a prefix, as alone: its id does not depend on bank and question.
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
        return super().prepare(model, rows, replace(filled, x=x, residual=residual), task)

    @property
    def said(self) -> str:
        """Why a report has no losses."""
        return f"answered from the bank in {self.bank}, and nothing was trained"


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


@torch.no_grad()
def _segments(
    model: Model, bank: str, group: int | None, asked: Sequence[tuple[Prompt, str]]
) -> Sequence[Segment | None]:
    """The prefixes of prompts with their questions."""
    loaded = _bank(model, bank)
    if not asked or not len(loaded.tokens):
        return [None] * len(asked)
    weights, networks = loaded.weights, loaded.weights.networks
    ids = [model.prompts.build([{"role": "user", "content": q}]).ids[-weights.window :] for _, q in asked]
    states = weights.questions(model.backbone, ids, model.pad_id)
    size = group or len(loaded.tokens)
    found = torch.cat([hierarchical(networks, own[None], loaded.tokens, max(2, size)) for own in states])
    segments = []
    for (prompt, _), own in zip(asked, found, strict=True):
        made, front = prefix(model.backbone, networks.modulate(own[None])), opening(model.prompts, prompt)
        # The opening comes last in the cache: a segment's tokens are its last columns, and positions tell the order.
        pieces = [made, in_front(model.backbone, front, weights.window)]
        segments.append(replace(chain(model.backbone, front.ids[: front.spared], pieces), end=weights.end))
    return segments


def _question(prompt: Prompt) -> str:
    """The last user message, as text."""
    start, end = prompt.question
    return prompt.text[prompt.offsets[start][0] : prompt.offsets[end - 1][1]] if end > start else ""
