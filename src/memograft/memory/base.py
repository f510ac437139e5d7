"""The protocol of a memory: a way to put a context into the model. A new kind is one subclass of `Memory`.

    settings ──> check(model) ──> before(rows) ──> prefill ──> prepare(rows, prefill) ──> Brought, one for each row
                                  keys and values              adapter, rules, report
                                  in front of a prompt
                                  beside(rows)
                                  texts of the same pass

The engine calls these methods in this order, once per kind for all rows of a batch that ask for it. The result of a row
must not depend on the other rows. A memory that is kept (`Engine.memorize`, a bank, a folder) is a `MemoryHandle`.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Self

from memograft.decoding.cad import Cad
from memograft.decoding.rule import Rule
from memograft.documents import Document
from memograft.errors import RequestCancelledError, SettingsError
from memograft.memory import SHIPPED
from memograft.memory.report import MemoryReport
from memograft.model.adapter import Adapter
from memograft.model.backbone import Backbone
from memograft.model.kv import Prefill, Segment
from memograft.prompt.builder import Prompt, PromptBuilder

if TYPE_CHECKING:
    from memograft.memory.bank import Bank
    from memograft.memory.handle import MemoryHandle
    from memograft.model.prefill import Pace

__all__ = ["Brought", "Memory", "Model", "Task", "Wanted", "by_kind", "content_id"]


@dataclass(frozen=True)
class Model:
    """The parts of a loaded model that a memory works with.

    Attributes:
        backbone: the network.
        prompts: builds token ids from messages and documents.
        pad_id: the padding token.
        fingerprint: identifies the weights and the parts of the configuration that affect the output.
        bank: where memories are kept, if anywhere.
    """

    backbone: Backbone
    prompts: PromptBuilder
    pad_id: int
    fingerprint: str
    bank: Bank | None = None

    def recalled(self, prompt: Prompt) -> Segment | None:
        """The bank's keys and values for the beginning of the prompt, if it has any."""
        return self.bank.prefixes.get(self, prompt) if self.bank is not None else None

    def remember(self, prompt: Prompt, filled: Prefill, row: int = 0) -> None:
        """Put the keys and values of a prompt's documents, a row of the prefill, into the bank."""
        if self.bank is not None:
            self.bank.prefixes.put(self, prompt, filled, row)


@dataclass(frozen=True)
class Task:
    """Context of long work.

    Attributes:
        given_up: whether it was cancelled. Called between parts of the work; others may use the model meanwhile.
        progress: whether to show a progress bar.
        pace: limits how many tokens a pass may have; None if nobody waits.
    """

    given_up: Callable[[], bool] = lambda: False
    progress: bool = False
    pace: Pace | None = None

    def pause(self, work: str) -> None:
        """Let others use the model; `work` completes "while its documents were ...".

        Raises:
            RequestCancelledError: the task was given up.
        """
        if self.given_up():
            raise RequestCancelledError(f"the request was given up while its documents were {work}")


@dataclass(frozen=True)
class Wanted:
    """A row of a batch that asks for a memory.

    Attributes:
        memory: the settings, without "auto".
        prompt: the row's prompt.
        row: its row in the prefill.
        kept: a memory that was made before, if the request has one.
        documents: all documents of the request, also those that its prompt does not show.
        task: of making a memory; its `given_up` is called between parts of long work.
        beside: the pass of the text that `Memory.beside` named, and its row there; None if it was not run.
        hide: leaves the documents out of the request, and returns its prompt without them; `before` may call it. None
            if there is no request to answer.
        relevance: of the documents to the question, if `before` judged them: it writes them here, for `prepare`.
    """

    memory: Any  # an instance of the class whose method is called
    prompt: Prompt
    row: int
    kept: MemoryHandle | None = None
    documents: tuple[Document, ...] = ()
    task: Task = Task()
    beside: tuple[Prefill, int] | None = None
    hide: Callable[[], Prompt] | None = None
    relevance: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Brought:
    """What a memory adds to a row of the batch.

    Attributes:
        adapter: weights for the last FFN, or None.
        rules: how the distributions with and without the adapter are combined; ignored without an adapter.
        fallback: whether the base model's answer may replace one that repeats itself or does not end.
        report: what memorizing did.
        id: of the memory, if it can be kept; see `content_id`.
        about: False if the documents were judged, and none is so much about the question that Cad is used.
    """

    adapter: Adapter | None = None
    rules: Sequence[Rule] = ()
    fallback: bool = False
    report: MemoryReport | None = None
    id: str = ""
    about: bool = True


class Memory(ABC):
    """Settings of one kind of memory. Subclasses are frozen dataclasses whose fields are JSON values.

    Attributes:
        kind: name of the kind in files and ids.
        trains: whether a memory of this kind has weights of its own, without which there is nothing to save.
        carries: whether a handle keeps the keys and values of `before` where it is kept, also in a folder.
    """

    kind: ClassVar[str]
    carries: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    kinds: ClassVar[dict[str, type[Memory]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in cls.__dict__:
            Memory.kinds[cls.kind] = cls

    @property
    def settings(self) -> Self:
        """Itself. A `MemoryHandle` has the settings that it was made with."""
        return self

    @property
    def kept(self) -> MemoryHandle | None:
        """None: these are only settings. A `MemoryHandle` returns itself."""
        return None

    @property
    def own_cad(self) -> Cad | None:
        """The context-aware decoding of requests with this memory, if its settings ask for it."""
        return None

    def resolved(self, own: Mapping[str, Any] | None = None) -> Self:  # noqa: ARG002
        """Replace "auto" by values; `own` are the model's own settings (see `memograft.model.config`)."""
        return self

    def check(self, backbone: Backbone, fingerprint: str) -> None:  # noqa: B027
        """Refuse an unsupported model before anything is computed.

        Raises:
            UnsupportedModelError, ModelMismatchError: with the reason.
        """

    def shown(self, documents: tuple[Document, ...]) -> tuple[Document, ...]:
        """The documents of a request that are included in its prompt."""
        return documents

    def columns(self, prompts: PromptBuilder, documents: tuple[Document, ...]) -> int:  # noqa: ARG002
        """How many columns the memory's segment adds to the prompt's own, at most; they count towards the window.

        Args:
            prompts: builds token ids.
            documents: all documents of the request.
        """
        return 0

    def kept_as(self, model: Model, prompt: Prompt) -> tuple[str, ...]:  # noqa: ARG002
        """The ids under which a bank keeps what this memory makes of a prompt's documents, known before any pass.

        Empty if a bank keeps nothing of it, or there is nothing to memorize.
        """
        return ()

    @classmethod
    def before(cls, model: Model, rows: Sequence[Wanted]) -> list[Segment | None]:
        """Keys and values to put in front of each row's prompt, before it is prefilled.

        By default these are the documents' keys and values of a kept memory.
        """
        return [row.kept.segment_of(model.backbone, row.prompt) if row.kept is not None else None for row in rows]

    @classmethod
    def beside(cls, model: Model, rows: Sequence[Wanted]) -> list[tuple[tuple[int, ...], Segment] | None]:  # noqa: ARG003
        """Another text for each row, whose states `prepare` needs: its tokens, and the segment that they begin with.

        Short texts are run in the pass of the prompts if those are short as well, because a pass reads all weights.
        Otherwise `prepare` runs them itself.
        """
        return [None] * len(rows)

    @classmethod
    @abstractmethod
    def prepare(cls, model: Model, rows: Sequence[Wanted], filled: Prefill, task: Task) -> list[Brought]:
        """Return what each row needs for decoding, after the prompts were prefilled.

        If memory runs out here, a row may lose its memory, and its report must say so; it must still be answered.
        """

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Memory:
        """Read settings that `to_json` wrote.

        Raises:
            SettingsError: the kind is unknown, or one of the values is not a setting of it.
        """
        for module in SHIPPED:
            import_module(module)
        kind = Memory.kinds.get(str(values.get("kind")))
        if kind is None:
            known = ", ".join(sorted(Memory.kinds))
            raise SettingsError(
                f"`kind` must be one of {known}, got {values.get('kind')!r}; import the module that defines it first"
            )
        try:
            return kind(**{name: value for name, value in values.items() if name != "kind"})
        except TypeError as e:
            raise SettingsError(f"`{values['kind']}` has no such setting: {e}") from e


def by_kind(rows: Sequence[Wanted]) -> list[tuple[type[Memory], list[Wanted]]]:
    """Group rows by the class of their memory."""
    kinds: dict[type[Memory], list[Wanted]] = {}
    for row in rows:
        kinds.setdefault(type(row.memory), []).append(row)
    return list(kinds.items())


def content_id(fingerprint: str, kind: str, made_by: Mapping[str, Any], prompt: Prompt) -> str:
    """Hash what determines a memory, to 32 hex digits: model, kind, training settings, and its context in the prompt.

    Tokens before a document are included, because the model attends to them; those after the last document are not.
    """
    end = max((end for _, end in prompt.spans), default=0)
    what = [fingerprint, kind, made_by, prompt.ids[:end], prompt.spans]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
