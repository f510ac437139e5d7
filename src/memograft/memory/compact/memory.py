"""`Kept` and `Compacted`: a context is carried as keys and values, so that its tokens are read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from memograft.decoding.cad import Cad
from memograft.errors import SettingsError
from memograft.memory.base import Brought, Memory, Model, Task, Wanted, content_id
from memograft.memory.compact.keys import check, compacted, exact, tail_of
from memograft.memory.fastmem.memory import FastMem
from memograft.memory.fastmem.rows import gather
from memograft.memory.handle import MemoryHandle
from memograft.memory.report import MemoryReport
from memograft.model.backbone import Backbone
from memograft.model.carried import Carried
from memograft.model.kv import Prefill, Segment
from memograft.prompt.builder import Prompt

__all__ = ["Compacted", "Kept"]


@dataclass(frozen=True)
class Kept(Memory):
    """Keep the documents' keys and values exactly: answers are the plain ones, without reading the documents again.

    A handle of `Engine.memorize` has them, and its folder too. A request without a handle reads its documents, unless
    the engine's bank has them.

    Attributes:
        memory: what else is done with the documents, e.g. FastMem().

    Raises:
        SettingsError: `memory` is not FastMem or None.
    """

    memory: FastMem | None = None

    kind: ClassVar[str] = "kept"
    carries: ClassVar[bool] = True
    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        memory: object = self.memory
        if isinstance(memory, Mapping):
            memory = Memory.from_json(memory)
            object.__setattr__(self, "memory", memory)
        if not isinstance(memory, FastMem | None):
            raise SettingsError(f"`memory` of {type(self).__name__} must be FastMem(...) or None, got {memory!r:.80}")

    @property
    def own_cad(self) -> Cad | None:
        """That of `memory`."""
        return None if self.memory is None else self.memory.own_cad

    def resolved(self, own: Mapping[str, Any] | None = None) -> Self:
        """Replace "auto" in the settings of `memory`."""
        return replace(self, memory=self.memory and self.memory.resolved(own))

    def check(self, backbone: Backbone, fingerprint: str) -> None:
        """Refuse an unsupported model before anything is computed.

        Raises:
            UnsupportedModelError: FastMem does not support it.
        """
        if self.memory is not None:
            self.memory.check(backbone, fingerprint)

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**super().to_json(), "memory": self.memory and self.memory.to_json()}

    def kept_as(self, model: Model, prompt: Prompt) -> tuple[str, ...]:
        """Those of `memory`. Exact keys and values are prefixes of a bank, not memories."""
        return () if self.memory is None else self.memory.kept_as(model, prompt)

    @classmethod
    def prepare(cls, model: Model, rows: Sequence[Wanted], filled: Prefill, task: Task) -> list[Brought]:
        """What `memory` brings, or nothing; see `Memory.prepare`."""
        reports = [
            MemoryReport(reason=row.memory.said, settings=row.memory.to_json(), reused=row.kept is not None)
            for row in rows
        ]
        brought = [Brought(report=report) for report in reports]
        inner = _inner(rows)
        wanted = list(inner.values())
        for n, its in zip(inner, FastMem.prepare(model, wanted, filled, task) if wanted else (), strict=True):
            brought[n] = replace(its, id="")  # FastMem's id does not tell how the context is carried
        return brought

    @classmethod
    def beside(cls, model: Model, rows: Sequence[Wanted]) -> list[tuple[tuple[int, ...], Segment] | None]:
        """The texts of `memory`; see `Memory.beside`."""
        inner = _inner(rows)
        texts = dict(zip(inner, FastMem.beside(model, list(inner.values())), strict=True))
        return [texts.get(n) for n in range(len(rows))]

    @property
    def said(self) -> str:
        """Why a report has no losses."""
        return "the documents are carried as their keys and values, and nothing was trained"


@dataclass(frozen=True)
class Compacted(Kept):
    """Keep some of the documents' keys, with values that are fitted so that attention reads about the same from them.

    Nothing is trained, and any model works whose attention takes a mask for each head (attention implementations "sdpa"
    and "eager"). See `memograft.memory.compact.match` for the method (attention matching, arXiv 2602.16284). It takes a
    second pass over the documents and several times as long again (docs/carried.md), once: with a handle of
    `Engine.memorize`, or for requests with the same documents if the engine has a bank.

    Attributes:
        memory: what else is done with the documents, e.g. FastMem().
        ratio: the bytes of the documents' keys and values are divided by this, over all layers and heads together,
            where they are kept. While a request uses them, they take as much as all. 1 keeps all.
        int8: keys and values are rounded to 8 bits each, unless `ratio` is 1. So in a model in bfloat16 about twice as
            many keys are kept, which gains much more than the rounding loses; no key is left out up to a ratio of about
            1.9.
        questions: like those that will be asked, if they are known: keys that these questions read are kept rather
            than others.

    Raises:
        SettingsError: a value is out of its range.
    """

    ratio: float = 4.0
    questions: tuple[str, ...] = ()
    int8: bool = True

    kind: ClassVar[str] = "compacted"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, int | float) or not 1 <= self.ratio < 1e6:
            raise SettingsError(f"`ratio` must be a number of at least 1, such as 4 or 10, got {self.ratio!r}")
        if not isinstance(self.int8, bool):
            raise SettingsError(f"`int8` must be True or False, got {self.int8!r:.80}")
        if isinstance(self.questions, list):  # as JSON has it
            object.__setattr__(self, "questions", tuple(self.questions))
        if not isinstance(self.questions, tuple) or not all(isinstance(q, str) and q.strip() for q in self.questions):
            raise SettingsError(f'`questions` must be texts, such as ("Who wrote it?",), got {self.questions!r:.80}')

    def check(self, backbone: Backbone, fingerprint: str) -> None:
        """Refuse an unsupported model before anything is computed.

        Raises:
            UnsupportedModelError: attention takes no mask for each head, there is nothing to compact, or FastMem does
                not support the model.
        """
        super().check(backbone, fingerprint)
        check(backbone)

    @classmethod
    def before(cls, model: Model, rows: Sequence[Wanted]) -> list[Segment | None]:
        """The compacted keys and values of each row's documents: a handle's, the bank's, or new ones."""
        return [super(Compacted, cls).before(model, [row])[0] or _made(model, row) for row in rows]

    def kept_as(self, model: Model, prompt: Prompt) -> tuple[str, ...]:
        """The ids of the compacted keys and values, and of `memory`."""
        return (self._id(model, prompt), *super().kept_as(model, prompt)) if gather(prompt) else ()

    def _id(self, model: Model, prompt: Prompt) -> str:
        made_by = {"ratio": self.ratio, "questions": self.questions, "int8": self.int8}
        return content_id(model.fingerprint, self.kind, made_by, prompt)

    def compact(self, model: Model, prompt: Prompt, segment: Segment, task: Task) -> Carried:
        """Compact the keys and values of a prompt's documents."""
        start, tail = min(start for start, _ in prompt.spans), tail_of(model, prompt, self.questions or ("?",))
        return compacted(model.backbone, segment, start, self.ratio, tail, task, int8=self.int8)

    @property
    def said(self) -> str:
        """Why a report has no losses."""
        return f"the documents' keys and values are carried in 1/{self.ratio:g} of their bytes, and nothing was trained"


def _inner(rows: Sequence[Wanted]) -> dict[int, Wanted]:
    """The rows that also want FastMem, as rows of it, by index."""
    memories = {n: row.memory.memory for n, row in enumerate(rows)}
    return {n: replace(rows[n], memory=memory) for n, memory in memories.items() if memory is not None}


def _made(model: Model, row: Wanted) -> Segment | None:
    """The segment of a request without a handle of its documents."""
    memory: Compacted = row.memory
    if not gather(row.prompt):
        return None
    id = memory._id(model, row.prompt)
    kept = model.bank.get(id, model.backbone) if model.bank is not None else None
    # FastMem is trained on states that are not kept.
    whole = exact(model, row.prompt, row.task) if kept is None or memory.memory is not None else None
    if kept is not None and kept.carried is not None:
        carried = kept.carried
    else:
        assert whole is not None
        carried = memory.compact(model, row.prompt, whole, row.task)
        if model.bank is not None:
            settings, report = replace(memory, memory=None), MemoryReport(reason=memory.said)
            documents = row.prompt.documents
            model.bank.put(MemoryHandle.new(model, id, documents, settings, None, report, carried=carried))
    segment = carried.segment(model.backbone)
    return segment if whole is None else replace(segment, x=whole.x, residual=whole.residual, read=whole.read)
