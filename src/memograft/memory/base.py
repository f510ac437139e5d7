"""What a memory is: a way to put a context into the model. A new kind is one subclass, and no other file knows of it.

    settings ──> check(model) ──> before(rows) ──> prefill ──> prepare(rows, prefill) ──> Brought, one for each row
                                  keys and values                adapter, rules, report
                                  in front of a prompt

The engine calls these in this order, each kind once for all rows of a batch that ask for it; every row must get what it
would get alone. What was made for a context and is kept (`Engine.memorize`, a bank, a folder) is a `MemoryHandle`.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Self

from memograft.decoding.rule import Rule
from memograft.documents import Document
from memograft.errors import SettingsError
from memograft.memory import SHIPPED
from memograft.memory.report import MemoryReport
from memograft.model.adapter import Adapter
from memograft.model.backbone import Backbone
from memograft.model.kv import Prefill, Segment
from memograft.prompt.builder import Prompt, PromptBuilder

if TYPE_CHECKING:
    from memograft.memory.bank import Bank
    from memograft.memory.handle import MemoryHandle

__all__ = ["Brought", "Memory", "Model", "Task", "Wanted", "by_kind", "content_id"]


@dataclass(frozen=True)
class Model:
    """The parts of a loaded model that a memory works with.

    Attributes:
        backbone: the network.
        prompts: what makes token ids of messages and documents.
        pad_id: the token that fills shorter rows.
        fingerprint: of the weights and of what the configuration adds to them.
        bank: where memories are kept by their ids, if anywhere.
    """

    backbone: Backbone
    prompts: PromptBuilder
    pad_id: int
    fingerprint: str
    bank: Bank | None = None

    def recalled(self, prompt: Prompt) -> Segment | None:
        """What the bank has of the keys and values that the prompt begins with."""
        return self.bank.prefixes.get(self, prompt) if self.bank is not None else None

    def remember(self, prompts: Sequence[Prompt], filled: Prefill) -> None:
        """Let the bank keep the keys and values of the prompts' documents."""
        for row, prompt in enumerate(prompts if self.bank is not None else ()):
            assert self.bank is not None
            self.bank.prefixes.put(self, prompt, filled, row)


@dataclass(frozen=True)
class Wanted:
    """A row of a batch that asks for a memory.

    Attributes:
        memory: the settings, without "auto".
        prompt: what the row reads.
        row: which row of the prefill it is.
        kept: the memory that it brings along, made before.
    """

    memory: Any  # of the kind that is called
    prompt: Prompt
    row: int
    kept: MemoryHandle | None = None


@dataclass(frozen=True)
class Brought:
    """What a memory brings to a row.

    Attributes:
        adapter: weights on the last FFN, or None.
        rules: how the distributions with and without the adapter are combined; ignored without one.
        fallback: whether the base model's own answer may take the place of one that goes wrong.
        report: what was done.
        id: of what was made, if it can be kept; see `content_id`.
    """

    adapter: Adapter | None = None
    rules: Sequence[Rule] = ()
    fallback: bool = False
    report: MemoryReport | None = None
    id: str = ""


@dataclass(frozen=True)
class Task:
    """What long work asks while it goes on: whether it is still wanted, and whether it shows a progress bar."""

    given_up: Callable[[], bool] = lambda: False
    progress: bool = False


class Memory(ABC):
    """Settings of one kind of memory: immutable, hashable, and dataclasses whose fields are JSON values.

    Attributes:
        kind: its name in files and ids.
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Memory]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in cls.__dict__:
            Memory.kinds[cls.kind] = cls

    @property
    def settings(self) -> Self:
        """Itself, as `MemoryHandle.settings` is how a kept memory was made."""
        return self

    @property
    def kept(self) -> MemoryHandle | None:
        """None: nothing has been made yet."""
        return None

    def resolved(self, own: Mapping[str, Any] | None = None) -> Self:  # noqa: ARG002
        """With values for what is "auto"; `own` is what the model brings (see `memograft.model.config`)."""
        return self

    def check(self, backbone: Backbone, fingerprint: str) -> None:  # noqa: B027
        """Refuse a model that this cannot work on, before anything is computed.

        Raises:
            UnsupportedModelError, ModelMismatchError: with the reason.
        """

    def shown(self, documents: tuple[Document, ...]) -> tuple[Document, ...]:
        """Those of a request's documents that stand in its prompt."""
        return documents

    def columns(self, prompts: PromptBuilder, documents: tuple[Document, ...]) -> int:  # noqa: ARG002
        """How many columns of its segment are not the prompt's, at most; the model's window holds them too.

        Args:
            prompts: what makes token ids.
            documents: all of the request's.
        """
        return 0

    @classmethod
    def before(cls, _model: Model, rows: Sequence[Wanted]) -> list[Segment | None]:
        """Keys and values that stand in front of each row's prompt, which is not prefilled yet.

        What was kept with the documents' own keys and values brings them along.
        """
        return [row.kept.segment_of(row.prompt) if row.kept is not None else None for row in rows]

    @classmethod
    @abstractmethod
    def prepare(cls, model: Model, rows: Sequence[Wanted], filled: Prefill, task: Task) -> list[Brought]:
        """What each row brings to decoding, once the prompts are prefilled.

        Running out of memory here may cost a row its memory, which its report says, but not its answer.
        """

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Memory:
        """The settings that `to_json` wrote.

        Raises:
            SettingsError: the kind is unknown, or a value is none of its settings.
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
    """The rows that each kind is called for."""
    kinds: dict[type[Memory], list[Wanted]] = {}
    for row in rows:
        kinds.setdefault(type(row.memory), []).append(row)
    return list(kinds.items())


def content_id(fingerprint: str, kind: str, made_by: Mapping[str, Any], prompt: Prompt) -> str:
    """32 hex digits of what decides a memory: model, kind, the settings that shape it, and the context in its prompt.

    The tokens in front of a document count, since a model reads it in their light; those behind the last one do not.
    """
    end = max((end for _, end in prompt.spans), default=0)
    what = [fingerprint, kind, made_by, prompt.ids[:end], prompt.spans]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
