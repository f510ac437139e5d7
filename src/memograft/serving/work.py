"""Requests on their way through the engine: what was fixed when they came in, and which may share a batch."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from memograft.decoding.batch_processor import BatchProcessor
from memograft.decoding.cad import Cad
from memograft.decoding.json_or_text import JsonOrText
from memograft.decoding.json_schema import JsonSchema
from memograft.decoding.processor import Processor
from memograft.decoding.tap import Tap
from memograft.documents import Document
from memograft.errors import EngineClosedError, SettingsError
from memograft.memory.base import Brought, Memory
from memograft.memory.handle import MemoryHandle
from memograft.model.backbone import Backbone
from memograft.prompt.builder import Prompt, PromptBuilder
from memograft.prompt.overflow import Fitted, fit
from memograft.request import Request, Sampling
from memograft.serving.tokens import Tokens

__all__ = ["Documents", "Work", "as_request", "check", "check_fork", "resolved"]

Documents = Iterable[Document | str | Mapping[str, object]]


class Work:
    """A request on its way, and its prompt once that is built."""

    def __init__(self, request: Request) -> None:
        self.request = request
        # A seed drawn now makes a batch that is tried again say the same.
        seed = request.sampling.seed if request.sampling.seed is not None else random.SystemRandom().getrandbits(62)
        self.sampling = replace(request.sampling, seed=seed)
        self.max_new_tokens = request.sampling.max_new_tokens
        self.memory = request.memory.settings if request.memory is not None else None
        self.kept = request.memory.kept if request.memory is not None else None
        self.documents: tuple[Document, ...] = tuple(request.documents)  # type: ignore[arg-type]
        if not self.documents and self.kept is not None:
            self.documents = self.kept.documents
        self.brought = self.documents
        if self.memory is not None:
            self.documents = self.memory.shown(self.documents)
        self.fitted: Fitted | None = None
        self.echo: Prompt | None = None  # the prompt without documents, where context-aware decoding needs it
        self.json: JsonSchema | JsonOrText | None = None
        self.tap: Tap | None = None
        self.has_fallback = False  # whether the base model's own answer is decoded beside the memorized one
        self._spared = False  # its fallback, for want of memory
        self.said: list[int] = []  # a batch that is tried again goes on where it broke off

    def fit(self, builder: PromptBuilder, tokens: Tokens, window: int) -> None:
        """Build the prompt, unless it is built, and make sure that there is room for what the answer must hold.

        Raises:
            PromptTooLongError, SettingsError: see `overflow.fit`, `JsonSchema.limit`.
        """
        if self.fitted is not None:
            return
        if self.memory is not None:
            window -= self.memory.columns(builder, self.brought)
        self.fitted = fit(builder, self.request, self.documents, window)
        self.max_new_tokens = min(self.sampling.max_new_tokens, window - len(self.prompt.ids))
        if self.cad is not None:
            self.echo = builder.build(self.request.messages, (), self.request.tools)
        if self.request.json_schema is not None:
            self.json = tokens.json(self.request.json_schema, optional=self.request.json_optional)
            self.json.limit(self.max_new_tokens)
        if self.tap is not None:
            self.max_new_tokens = self.tap.length(self.max_new_tokens)

    @property
    def processors(self) -> list[Processor]:
        """The request's own, and the JSON that it asks for, which has the last word; the batch processor is apart."""
        own = [p for p in self.request.processors if isinstance(p, Processor) and not isinstance(p, BatchProcessor)]
        return [*own, *(last for last in (self.json, self.tap) if last is not None)]

    @property
    def batch(self) -> BatchProcessor | None:
        """What acts on this row together with others."""
        return next((p for p in self.request.processors if isinstance(p, BatchProcessor)), None)

    @property
    def cad(self) -> float | None:
        """Alpha of context-aware decoding; None where nothing would come of it."""
        alpha = next((p.alpha for p in self.request.processors if isinstance(p, Cad)), 0.0)
        return alpha if alpha and self.documents else None

    def falls_back(self, brought: Brought, streams: bool) -> bool:
        """Whether the base model's own answer is decoded beside the memorized one; `has_fallback` remembers it."""
        # Processors of the request's own may count their calls.
        self.has_fallback = (
            brought.fallback and brought.adapter is not None and not (streams or self._spared or self.processors)
        )
        return self.has_fallback

    def spares(self, error: Exception) -> bool:
        """After the error that ended it: whether there is something that it can do without, next time."""
        if not isinstance(error, torch.OutOfMemoryError) or not self.has_fallback:
            return False
        self._spared = True
        return True

    @property
    def prompt(self) -> Prompt:
        """What the model reads."""
        assert self.fitted is not None, "the prompt is built first"
        return self.fitted.prompt


def as_request(
    question: str | Request,
    documents: Documents,
    memory: Memory | MemoryHandle | None,
    sampling: Sampling | None,
    options: Mapping[str, Any],
) -> Request:
    """What `answer` is called with -> the request it means."""
    if not isinstance(question, Request):
        return Request(question, documents=documents, memory=memory, sampling=sampling or Sampling(), **options)  # type: ignore[arg-type]
    if documents or memory is not None or sampling is not None or options:
        raise SettingsError("a Request already holds its documents, memory and sampling; use dataclasses.replace")
    return question


def resolved(request: Request, own: Mapping[str, object]) -> Request:
    """The request with values for what its memory's settings leave to the model; see `Memory.resolved`.

    Raises:
        SettingsError: `memory` is none.
    """
    memory = request.memory
    if memory is None:
        return request
    if not isinstance(memory, Memory | MemoryHandle):
        raise SettingsError(
            f"`memory` must be FastMem(...), a handle of Engine.memorize, or None, got {type(memory).__name__}"
        )
    return replace(request, memory=memory.resolved(own))


def check(request: Request, backbone: Backbone, fingerprint: str) -> None:
    """Refuse what can never be answered, before anything is computed.

    Raises:
        SettingsError: `memory` belongs to another model; a token id of `logit_bias` is none; there are two Rtd or two
            Cad.
        ModelMismatchError: a datastore is another model's.
        UnsupportedModelError: this model cannot have such a memory.
    """
    if request.memory is not None:
        request.memory.check(backbone, fingerprint)
    if beyond := [id for id in request.sampling.logit_bias if id >= backbone.vocabulary]:
        raise SettingsError(
            f"the keys of `logit_bias` must be token ids below {backbone.vocabulary}, the size of the model's "
            f"vocabulary, got {beyond[0]}; `Engine.encode` has the ids of a text"
        )
    batch = [p for p in request.processors if isinstance(p, BatchProcessor)]
    if len(batch) > 1:
        raise SettingsError(f"`processors` may hold one Rtd, got {len(batch)}; build one datastore of all examples")
    if len(alphas := [p.alpha for p in request.processors if isinstance(p, Cad)]) > 1:
        raise SettingsError(f"`processors` may hold one Cad, got {len(alphas)} (alpha {alphas}); keep one of them")
    for n, other in enumerate(request.processors):
        if not isinstance(other, Processor | Cad):
            raise SettingsError(
                f"`processors` may hold transformers' LogitsProcessors, Rtd(...) and Cad(...), got {other!r:.80} in "
                f"place {n}; pass an instance of one of them"
            )
    for processor in batch:
        processor.check(fingerprint)


def check_fork(device: torch.device) -> None:
    """Make the model's device usable in a process that was forked from the model's own.

    Raises:
        EngineClosedError: it is a GPU.
    """
    if device.type != "cpu":
        raise EngineClosedError(
            f"this engine's model is on {device}, which a forked process cannot use; start processes with the method "
            '"spawn", or make the engine in the child'
        )
    torch.set_num_threads(1)  # OpenMP's other threads are the parent's: here they would be waited for for ever
