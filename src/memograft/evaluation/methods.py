"""The ways to answer that are compared. `METHODS` is the list: a new way is one line of it.

Importing this loads no torch, so that the command line can name the methods at once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import memograft
from memograft.errors import SettingsError
from memograft.evaluation.items import Item

if TYPE_CHECKING:
    from memograft import Engine, FastMem, Request, Sampling

__all__ = ["METHODS", "Method", "from_settings"]


@dataclass(frozen=True)
class Method:
    """One way to answer a question.

    Attributes:
        documents: whether the item's documents stand in the prompt.
        memory: makes the settings they are memorized with; None memorizes nothing.
        memorizes: the item's "own" documents, or those of "another" item while its own stand in the prompt.
        processor: (engine, item, **options) -> a logits processor for this request; None for none.
        options: of the processor.
    """

    documents: bool = True
    memory: Callable[[], FastMem] | None = None
    memorizes: Literal["own", "another"] = "own"
    processor: Callable[..., Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def request(self, engine: Engine, items: Sequence[Item], n: int, sampling: Sampling) -> Request:
        """The request that asks `items[n]` this way; `items` is its whole set.

        Raises:
            SettingsError: another item's documents are wanted, and there are none.
            PromptTooLongError: those do not fit the model's window.
        """
        item, memory = items[n], self.memory() if self.memory else None
        return memograft.Request(
            item.question,
            documents=item.documents if self.documents else (),
            memory=engine.memorize(_unrelated(items, n), memory) if memory and self.memorizes == "another" else memory,
            processors=[self.processor(engine, item, **self.options)] if self.processor else [],
            sampling=sampling,
        )

    def settings(self) -> dict[str, Any]:
        """All that decides what it does, as JSON values; defaults are spelled out."""
        return {
            "documents": self.documents,
            "memory": asdict(self.memory()) if self.memory else None,
            "memorizes": self.memorizes if self.memory else None,
            "processor": self.processor.__name__.strip("_") if self.processor else None,
            **self.options,
        }


def from_settings(text: str) -> Method:
    """Memorizing with FastMem's defaults but for what `text` says, e.g. "steps=4, learning_rate=1e-2, gate=support".

    With "paper" as the first word the paper's recipe stands in for the defaults.

    Raises:
        SettingsError: a part of it is no setting of FastMem, or has a value that can never work.
    """
    known = [f.name for f in fields(memograft.FastMem)]
    first, *rest = parts = [part.strip() for part in re.split(r",(?![^(\[]*[)\]])", text)]  # not inside brackets
    base = memograft.FastMem.paper if first == "paper" else memograft.FastMem
    changes: dict[str, Any] = {}
    for part in rest if first == "paper" else parts:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise SettingsError(f"settings must be written as name=value, got {part!r} in {text!r}; try steps=4")
        if name not in known:
            raise SettingsError(f"`{name}` is not a setting of FastMem, whose settings are {', '.join(known)}; use one")
        if name in changes:
            raise SettingsError(f"`{name}` must be set once, got it twice in {text!r}; leave one out")
        changes[name] = _value(value)
    try:
        settings = base(**changes)
    except TypeError as error:
        raise SettingsError(f"settings must have values of the right kind, got {text!r} ({error}); mend it") from error
    return Method(memory=lambda: settings)


def _value(text: str) -> Any:
    """A number, a tuple, True, False or None as Python writes it; anything else is a word."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _unrelated(items: Sequence[Item], n: int) -> tuple[memograft.Document, ...]:
    """The documents of the next item that shares none with item `n`."""
    own = {d.text for d in items[n].documents}
    for item in (*items[n + 1 :], *items[:n]):
        if not own & {d.text for d in item.documents}:
            return item.documents
    raise SettingsError(
        f"another item's documents must be memorized, got none in the set {items[n].set!r} that differ from those of "
        f"item {items[n].id}; ask more questions, or leave the method out"
    )


def _restricted(engine: Engine, item: Item) -> Any:
    from memograft.evaluation.controls import Restricted

    return Restricted(engine, item)


def _context_aware(engine: Engine, item: Item, alpha: float) -> Any:
    from memograft.evaluation.controls import context_aware

    return context_aware(engine, item, alpha)


METHODS: dict[str, Method] = {
    "no document": Method(documents=False),
    "plain": Method(),
    "plain, restricted": Method(processor=_restricted),
    "CAD": Method(processor=_context_aware, options={"alpha": 0.5}),
    "memorized": Method(memory=lambda: memograft.FastMem()),
    "memorized, support gate": Method(memory=lambda: memograft.FastMem(gate="support")),
    "memorized, contrast 0.5": Method(memory=lambda: memograft.FastMem(contrast=0.5)),
    "memorized, all documents": Method(memory=lambda: memograft.FastMem(relevance=None, conflicts=None)),
    "memorized, all documents, support gate": Method(
        memory=lambda: memograft.FastMem(relevance=None, conflicts=None, gate="support")
    ),
    "irrelevant document memorized": Method(memory=lambda: memograft.FastMem(), memorizes="another"),
    "paper's recipe": Method(memory=lambda: memograft.FastMem.paper()),
    "paper's recipe, lr 1e-3": Method(memory=lambda: memograft.FastMem.paper(learning_rate=1e-3)),
}
