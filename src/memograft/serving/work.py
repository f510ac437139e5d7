"""Requests inside the engine: their state from arrival to answer, and the checks on arrival."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import torch

from memograft.decoding.batch_processor import BatchProcessor
from memograft.decoding.cad import Cad
from memograft.decoding.dola import Dola
from memograft.decoding.json_or_text import JsonOrText
from memograft.decoding.json_schema import JsonSchema
from memograft.decoding.processor import Processor
from memograft.decoding.tap import Tap
from memograft.documents import Document
from memograft.errors import EngineClosedError, SettingsError
from memograft.memory.bank import Bank
from memograft.memory.base import Brought, Memory
from memograft.memory.handle import MemoryHandle
from memograft.memory.served import ServedMemory
from memograft.model.backbone import Backbone
from memograft.prompt.builder import Prompt, PromptBuilder
from memograft.prompt.overflow import Fitted, fit
from memograft.request import Request
from memograft.serving.tokens import Tokens

__all__ = ["Work", "check", "check_fork", "resolved"]


class Work:
    """A request inside the engine, with its prompt once that is built."""

    def __init__(self, request: Request) -> None:
        self.request = request
        # Drawn now, so that the base model's answer beside it samples with the same noise.
        seed = request.sampling.seed if request.sampling.seed is not None else random.SystemRandom().getrandbits(62)
        self.sampling = replace(request.sampling, seed=seed)
        self.max_new_tokens = request.sampling.max_new_tokens
        memory = request.memory if isinstance(request.memory, Memory | MemoryHandle) else None  # see `resolved`
        self.memory = memory.settings if memory is not None else None
        self.kept = memory.kept if memory is not None else None
        self.bank = request.bank
        self.documents: tuple[Document, ...] = tuple(request.documents)  # type: ignore[arg-type]
        if not self.documents and self.kept is not None:
            self.documents = self.kept.documents
        self.brought = self.documents
        if self.memory is not None:
            self.documents = self.memory.shown(self.documents)
        self.fitted: Fitted | None = None
        self.echo: Prompt | None = None  # the prompt without documents, for context-aware decoding
        self.json: JsonSchema | JsonOrText | None = None
        self.tap: Tap | None = None
        self.has_fallback = False  # whether the base model's answer is decoded too
        self._spared = False  # whether the fallback was given up after an out-of-memory error

    def fit(self, builder: PromptBuilder, tokens: Tokens, window: int) -> None:
        """Build the prompt, if that is not done yet, and check that there is room for the answer.

        Raises:
            PromptTooLongError, SettingsError: see `overflow.fit`, `JsonSchema.limit`.
        """
        if self.fitted is not None:
            return
        taken = self.memory.columns(builder, self.brought) if self.memory is not None else 0
        self.fitted = fit(builder, self.request, self.documents, window, taken)
        self.max_new_tokens = min(self.sampling.max_new_tokens, window - taken - len(self.prompt.ids))
        if self.cad is not None:
            self.echo = builder.build(self.request.messages, (), self.request.tools)
        if self.request.json_schema is not None:
            self.json = tokens.json(self.request.json_schema, optional=self.request.json_optional)
            self.json.limit(self.max_new_tokens)
        if self.tap is not None:
            self.max_new_tokens = self.tap.length(self.max_new_tokens)

    def hide(self, builder: PromptBuilder) -> Prompt:
        """Leave the documents out, and a kept memory of them; return the new prompt."""
        assert self.fitted is not None, "the prompt is built first"
        self.documents, self.kept = (), None
        self.fitted = replace(self.fitted, prompt=builder.build(self.request.messages, (), self.request.tools))
        return self.prompt

    @property
    def processors(self) -> list[Processor]:
        """The request's own processors without the batch processor, then the JSON schema and the tap."""
        own = [p for p in self.request.processors if isinstance(p, Processor) and not isinstance(p, BatchProcessor)]
        return [*own, *(last for last in (self.json, self.tap) if last is not None)]

    @property
    def batch(self) -> BatchProcessor | None:
        """The request's batch processor."""
        return next((p for p in self.request.processors if isinstance(p, BatchProcessor)), None)

    @property
    def cad(self) -> Cad | None:
        """The request's context-aware decoding, or its memory's; None if it would have no effect."""
        own = self.memory.own_cad if self.memory is not None else None
        cad = next((p for p in self.request.processors if isinstance(p, Cad)), own)
        return cad if cad is not None and cad.alpha and self.documents else None

    @property
    def dola(self) -> Dola | None:
        """The contrast with an earlier layer."""
        return next((p for p in self.request.processors if isinstance(p, Dola)), None)

    def falls_back(self, brought: Brought, streams: bool) -> bool:
        """Decide whether the base model's answer is decoded too, and store that in `has_fallback`."""
        # Not with processors of the request's own, because they may have state.
        self.has_fallback = (
            brought.fallback and brought.adapter is not None and not (streams or self._spared or self.processors)
        )
        return self.has_fallback

    def spares(self, error: Exception) -> bool:
        """Whether the request can be repeated without something after this error; if so, drop it."""
        if not isinstance(error, torch.OutOfMemoryError) or not self.has_fallback:
            return False
        self._spared = True
        return True

    @property
    def prompt(self) -> Prompt:
        """The built prompt."""
        assert self.fitted is not None, "the prompt is built first"
        return self.fitted.prompt


def resolved(request: Request, own: Mapping[str, object]) -> Request:
    """Replace what the memory's settings leave to the model by values; see `Memory.resolved`.

    Raises:
        SettingsError: `memory` is not a memory.
    """
    memory = request.memory
    if memory is None:
        return request
    if isinstance(memory, ServedMemory):
        raise SettingsError(
            f"`memory` is the memory {memory.id!r} of a server, which this process's engine does not have; memorize "
            "the documents with Engine.memorize, or ask a RemoteEngine of that server"
        )
    if not isinstance(memory, Memory | MemoryHandle):
        raise SettingsError(
            f"`memory` must be FastMem(...), a handle of Engine.memorize, or None, got {type(memory).__name__}"
        )
    return replace(request, memory=memory.resolved(own))


def check(request: Request, backbone: Backbone, fingerprint: str) -> None:
    """Refuse a request that cannot be answered, before anything is computed.

    Raises:
        SettingsError: `bank` is no bank; `memory` belongs to another model; a token id of `logit_bias` is not in the
            vocabulary; there are two Rtd, two Cad or two Dola; Cad has no
            document in the prompt to leave out; the model has no layer that Dola names.
        ModelMismatchError: a datastore belongs to another model.
        UnsupportedModelError: the model does not support this memory.
    """
    if request.bank is not None and not isinstance(request.bank, Bank):
        raise SettingsError(f"`bank` of a request must be a memograft.Bank or None, got {request.bank!r:.80}; make one")
    memory = request.memory if isinstance(request.memory, Memory | MemoryHandle) else None
    if memory is not None:
        memory.check(backbone, fingerprint)
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
    if memory is not None and (own := memory.settings.own_cad):
        if alphas:
            raise SettingsError(
                f"`processors` may hold no Cad beside a memory with `cad`, got alpha {alphas[0]} and {own.alpha}; keep "
                "one of them"
            )
        alphas = [own.alpha]
    for n, other in enumerate(request.processors):
        if not isinstance(other, Processor | Cad | Dola):
            raise SettingsError(
                f"`processors` may hold transformers' LogitsProcessors, Rtd(...), Cad(...) and Dola(...), got "
                f"{other!r:.80} in place {n}; pass an instance of one of them"
            )
    if any(alphas) and memory is not None:
        documents = tuple(request.documents) or (memory.kept.documents if memory.kept else ())
        if documents and not memory.settings.shown(documents):  # type: ignore[arg-type]
            raise SettingsError(
                f"`processors` may hold Cad only if documents are in the prompt, got alpha {alphas[0]} with "
                f"{type(memory.settings).__name__}, which shows none of them; leave Cad out, or show some"
            )
    if len(dolas := [p for p in request.processors if isinstance(p, Dola)]) > 1:
        raise SettingsError(f"`processors` may hold one Dola, got {len(dolas)}; keep one of them")
    for dola in dolas:
        dola.candidates(backbone)
    for processor in batch:
        processor.check(fingerprint)


def check_fork(device: torch.device) -> None:
    """Make the model's device usable in a process that was forked from the model's.

    Raises:
        EngineClosedError: the device is a GPU.
    """
    if device.type != "cpu":
        raise EngineClosedError(
            f"this engine's model is on {device}, which a forked process cannot use; start processes with the method "
            '"spawn", or make the engine in the child'
        )
    torch.set_num_threads(1)  # OpenMP would wait for ever for threads that the child does not have
