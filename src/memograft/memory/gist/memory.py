"""`Gist`: documents as the keys and values of trained gist tokens, in front of a prompt that does not have them."""

from __future__ import annotations

import hashlib
import json
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from memograft.documents import Document
from memograft.errors import SettingsError
from memograft.memory.base import Brought, Memory, Model, Task, Wanted
from memograft.memory.gist import folder
from memograft.memory.gist.compress import GistWeights, check_model, compressed, in_front, opening, parts
from memograft.memory.gist.refine import refined
from memograft.memory.prefixes import Place, Prefixes
from memograft.memory.report import MemoryReport
from memograft.model.backbone import Backbone
from memograft.model.kv import Piece, Prefill, Segment, chain
from memograft.prompt.builder import PromptBuilder

__all__ = ["Gist"]

_HELD = 1 << 28  # bytes of gists in memory, for an engine without a bank
_TOGETHER = 32  # documents in one pass


@dataclass(frozen=True)
class Gist(Memory):
    """Answer from k trained tokens for each document, whose own tokens are not in the prompt.

    A document is compressed once and kept: in the engine's bank, or else in memory. Documents of more than W tokens
    have several gists. Train a folder with `memograft train gist`.

    Args:
        folder: of a trained gist; "tiny" is the bundled one of the bundled model.
        tokens: k that it must have; None takes any.
        show: how many of the first documents also stay in the prompt as text.
        refine: optimiser steps by which each document's gist is fitted to the document, such as 60; see
            `memograft.memory.gist.refine`. Answers from a document come nearer to those with it in the prompt, and
            making a gist takes many times as long (docs/gist.md).

    Raises:
        SettingsError: a value is out of its range.
    """

    folder: str
    tokens: int | None = None
    show: int = 0
    refine: int = 0

    kind: ClassVar[str] = "gist"
    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", str(self.folder))  # a JSON value
        if not self.folder:
            raise SettingsError("`folder` must be the folder of a trained gist, got ''; see `memograft train gist`")
        for name, least in {"tokens": 1, "show": 0, "refine": 0}.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise SettingsError(f"`{name}` must be a whole number of at least {least}, got {value!r}")

    def check(self, backbone: Backbone, fingerprint: str) -> None:
        """Refuse a gist of another model, or of another k.

        Raises:
            MemoryFormatError: the folder is missing or damaged.
            SettingsError: it belongs to another model, or has another number of tokens.
            UnsupportedModelError: the model cannot have gist tokens.
        """
        found = folder.about(Path(self.folder))
        if found.fingerprint != fingerprint:
            raise SettingsError(
                f"the gist in {self.folder} was trained for another model (fingerprint {found.fingerprint}, this "
                f"model's is {fingerprint}); use that model, or train a gist for this one"
            )
        if self.tokens not in (None, found.tokens):
            raise SettingsError(
                f"`tokens` must be {found.tokens}, as many as the gist in {self.folder} was trained with, got "
                f"{self.tokens}; leave it out, or name another folder"
            )
        check_model(backbone)

    def shown(self, documents: tuple[Document, ...]) -> tuple[Document, ...]:
        """The first `show` documents."""
        return documents[: self.show]

    def columns(self, prompts: PromptBuilder, documents: tuple[Document, ...]) -> int:
        """W + k, the position of the token behind the gists; or the columns of all gists, if they are more."""
        if not documents:
            return 0
        found = folder.about(Path(self.folder))
        count = sum(len(parts(prompts, document, found.window)) for document in documents)
        return max(count * found.tokens, found.window + found.tokens)

    @classmethod
    def before(cls, model: Model, rows: Sequence[Wanted]) -> list[Segment | None]:
        """The gists of each row's documents. Those that are not kept yet are made, in passes over several documents."""
        segments: list[Segment | None] = []
        for row in rows:
            kept = row.kept.segment if row.kept is not None and row.kept.documents == row.documents else None
            own = opening(model.prompts, row.prompt)
            if kept is None or kept.ids != own.ids[: own.spared]:
                kept = _segment(model, row)
            segments.append(kept)
        return segments

    @classmethod
    def prepare(cls, model: Model, rows: Sequence[Wanted], filled: Prefill, task: Task) -> list[Brought]:  # noqa: ARG003
        """A report for each row; nothing is trained."""
        return [_brought(model, row) for row in rows]


def _brought(model: Model, row: Wanted) -> Brought:
    memory: Gist = row.memory
    found, ids = folder.about(Path(memory.folder)), [document.id for document in row.documents]
    text = [model.fingerprint, memory.kind, found.id, memory.show, [[d.id, d.text] for d in row.documents]]
    text += [memory.refine] if memory.refine else []
    id = hashlib.sha256(json.dumps(text).encode()).hexdigest()[:32]
    report = MemoryReport(
        reason=None if ids else "nothing to memorize: there are no documents",
        documents=tuple(ids),
        settings=memory.to_json(),
        reused=row.kept is not None,
        id=row.kept.id if row.kept is not None else "",
    )
    return Brought(report=report, id=id)


_loaded: weakref.WeakKeyDictionary[nn.Module, dict[str, GistWeights]] = weakref.WeakKeyDictionary()
_kept: weakref.WeakKeyDictionary[nn.Module, Prefixes] = weakref.WeakKeyDictionary()


def _weights(path: Path, id: str, backbone: Backbone) -> GistWeights:
    """The weights of a folder, which are read once for a model."""
    known = _loaded.setdefault(backbone.model, {})
    if id not in known:
        known[id] = folder.read(path, backbone)
    return known[id]


@torch.no_grad()
def _segment(model: Model, row: Wanted) -> Segment | None:
    documents, task = row.documents, row.task
    if not documents:
        return None
    path = Path(row.memory.folder)
    about = folder.about(path)
    weights = _weights(path, about.id, model.backbone)
    store = model.bank.prefixes if model.bank is not None else _kept.setdefault(model.backbone.model, Prefixes(_HELD))
    places = list(_places(model, about.id, weights, documents, row.memory.refine))
    if not places:  # documents without text
        return None
    pieces: dict[str, Piece] = {}
    for place, _ in places:
        piece = store.recall(model, place)
        if piece is not None:
            pieces[place.id] = piece
    missing = list({place.id: (place, ids) for place, ids in places if place.id not in pieces}.values())
    while missing:
        size = _TOGETHER if task.pace is None else max(1, min(_TOGETHER, task.pace.tokens // weights.end))
        if row.memory.refine:
            size = 1  # padding changes rounding, which the steps would enlarge
        now, missing = missing[:size], missing[size:]
        begun = time.monotonic()
        made = compressed(model.backbone, weights, [ids for _, ids in now], model.pad_id)
        if task.pace is not None:
            task.pace.ran(sum(len(ids) for _, ids in now), time.monotonic() - begun)
        for n, (place, ids) in enumerate(now):
            piece = _of_row(made, n)
            if row.memory.refine:
                text = _text(model, place.document, ids)
                piece, _ = refined(model, weights, piece, text, row.memory.refine, task, about.known)
            pieces[place.id] = piece
            store.keep(model, place, piece)
        task.pause("compressed")
    own = opening(model.prompts, row.prompt)
    front = in_front(model.backbone, own, weights.window)
    # The opening comes last in the cache, because a segment's tokens are its last columns; positions tell the order.
    segment = chain(model.backbone, own.ids[: own.spared], [*(pieces[place.id] for place, _ in places), front])
    return replace(segment, end=weights.end)


def _places(
    model: Model, id: str, weights: GistWeights, documents: Sequence[Document], refine: int
) -> Iterator[tuple[Place, tuple[int, ...]]]:
    """Where each gist is kept, with the tokens that it stands for."""
    for document in documents:
        for ids in parts(model.prompts, document, weights.window):
            named = [model.fingerprint, str(model.backbone.model.dtype), id, ids, *([refine] if refine else [])]
            yield Place(hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32], 0, len(ids), document), ids


def _text(model: Model, document: Document, ids: Sequence[int]) -> str:
    """The text of a document, or of a part of it, without the template's tokens."""
    start, end = model.prompts.build([{"role": "user", "content": "?"}], (document,)).spans[0]
    return document.text if len(ids) == end else model.prompts.decode(ids[start:])


def _of_row(made: Piece, row: int) -> Piece:
    """One document's gist, copied, so that the pass's other tensors are freed."""
    layers = tuple((keys[row : row + 1].clone(), values[row : row + 1].clone()) for keys, values in made.layers)
    return Piece(layers, made.x[row : row + 1].clone(), made.residual[row : row + 1].clone())
