"""The compared methods of answering, in `METHODS`; a new method is one line there.

Importing this does not import torch, so that the command line can list the methods quickly.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import memograft
from memograft.errors import SettingsError
from memograft.evaluation.items import Item

if TYPE_CHECKING:
    from memograft import Engine, Memory, Request, Sampling
    from memograft.evaluation.lessons import Lessons

__all__ = ["METHODS", "Method", "from_gist", "from_mac", "from_settings"]


@dataclass(frozen=True)
class Method:
    """One method of answering a question.

    Attributes:
        documents: whether the item's documents are in the prompt.
        instruction: text before the question.
        shots: number of worked examples of the tuning split that are shown as earlier turns.
        datastore: whether a datastore of the tuning split is used (`Rtd` with its defaults).
        memory: makes the settings of memorizing; None does not memorize.
        memorizes: the item's "own" documents, or those of "another" item while its own are in the prompt.
        processor: (engine, item, **options) -> a logits processor for this request; None for none.
        options: of the processor.
    """

    documents: bool = True
    instruction: str = ""
    shots: int = 0
    datastore: bool = False
    memory: Callable[[], Memory] | None = None
    memorizes: Literal["own", "another"] = "own"
    processor: Callable[..., object] | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def needs_examples(self) -> bool:
        """Whether it requires worked examples."""
        return self.shots > 0 or self.datastore

    def check(self, items: Sequence[Item], lessons: Lessons) -> None:
        """Check before a run that these items, of one set, can be asked with this method.

        Raises:
            SettingsError: it needs examples or another item's documents, and there are none.
        """
        if self.needs_examples and not lessons.examples:
            raise SettingsError(
                "worked examples are needed for few-shot and RTD, got none beside the questions that are asked; pass "
                "items of the tuning split, or leave the method out"
            )
        if self.memory and self.memorizes == "another":
            for n in range(len(items)):
                _unrelated(items, n)

    def prepare(self, lessons: Lessons) -> None:
        """Build what all requests share, so that it is not included in their times."""
        if self.datastore:
            _ = lessons.datastore

    def request(self, engine: Engine, items: Sequence[Item], n: int, sampling: Sampling, lessons: Lessons) -> Request:
        """The request for `items[n]`; `items` is the whole set.

        Raises:
            SettingsError: it needs another item's documents, and there are none.
            PromptTooLongError: those do not fit the model's window.
        """
        item, memory = items[n], self.memory() if self.memory else None
        asked = f"{self.instruction}\n\n{item.question}" if self.instruction else item.question
        processors = [self.processor(engine, item, **self.options)] if self.processor else []
        return memograft.Request(
            messages=[*lessons.turns(item, self.shots), {"role": "user", "content": asked}],
            query=item.query or (item.question if self.instruction else None),
            documents=item.documents if self.documents else (),
            memory=engine.memorize(_unrelated(items, n), memory) if memory and self.memorizes == "another" else memory,
            processors=[memograft.Rtd(lessons.datastore), *processors] if self.datastore else processors,
            sampling=sampling,
        )

    def settings(self) -> dict[str, object]:
        """Everything that determines the method, including defaults, as JSON values."""
        return {
            "documents": self.documents,
            "instruction": self.instruction,
            "shots": self.shots,
            "datastore": self.datastore,
            "memory": self.memory().to_json() if self.memory else None,
            "memorizes": self.memorizes if self.memory else None,
            "processor": self.processor.__name__.strip("_") if self.processor else None,
            **self.options,
        }


def from_settings(text: str) -> Method:
    """A method that memorizes with settings from a text, e.g. "steps=4, learning_rate=1e-2, gate=support".

    Other settings have FastMem's defaults, or those of a preset if the first word is "paper" or "faithful". A .json
    file, or a folder, is read by `FastMem.load`.

    Raises:
        SettingsError: a name is not a setting of FastMem, a value is out of its range, or the file is missing or
            damaged.
    """
    if text and (text.endswith(".json") or Path(text).is_dir()):
        loaded = memograft.FastMem.load(text)
        return Method(memory=lambda: loaded)
    first, *rest = parts = _parts(text)
    preset = {"paper": memograft.FastMem.paper, "faithful": memograft.FastMem.faithful}.get(first)
    known = [f.name for f in fields(memograft.FastMem)]
    settings = (preset or memograft.FastMem)(**_changes(text, rest if preset else parts, "FastMem", known, "steps=4"))
    return Method(memory=lambda: settings)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in re.split(r",(?![^(\[]*[)\]])", text)]  # not inside brackets


def _changes(text: str, parts: Sequence[str], kind: str, known: Sequence[str], example: str) -> dict[str, Any]:
    """The settings of a kind of memory in the parts of a text."""
    changes: dict[str, Any] = {}
    for part in parts:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise SettingsError(f"settings must be written as name=value, got {part!r} in {text!r}; try {example}")
        if name not in known:
            raise SettingsError(f"`{name}` is not a setting of {kind}, whose settings are {', '.join(known)}; use one")
        if name in changes:
            raise SettingsError(f"`{name}` must be set once, got it twice in {text!r}; leave one out")
        changes[name] = _value(value)
    return changes


def from_gist(text: str) -> Method:
    """A method that answers from gist tokens, without the documents in the prompt.

    `text` is the folder of a trained gist, or the folder and settings: "tiny, refine=60".

    Raises:
        MemoryFormatError: the folder is missing or damaged.
        SettingsError: a name is not a setting of Gist, or a value is out of its range.
    """
    from memograft.memory.gist.folder import about

    folder, *parts = [text] if Path(text).is_dir() else _parts(text)
    memory = memograft.Gist(folder, **_changes(text, parts, "Gist", ("refine", "show", "tokens"), "refine=60"))
    found = about(Path(folder))
    return Method(memory=lambda: memory, options={"gist": found.id})  # stored answers are those of this training


def from_mac(bank: Path, *, documents: bool = True) -> Method:
    """A method that answers from a MAC bank, alone or with the item's documents where one is about the question.

    Raises:
        MemoryFormatError: the bank is missing or damaged.
    """
    from memograft.memory.mac.bank import MacBank, mac_of

    has = [mac_of(str(bank)).id, *([*entry.ids, *entry.texts] for entry in MacBank(bank).entries)]
    content, memory = hashlib.sha256(json.dumps(has).encode()).hexdigest()[:16], memograft.Mac(str(bank))
    return Method(documents=documents, memory=lambda: memory, options={"bank": content})  # as for a gist


def _value(text: str) -> Any:
    """Parse a Python number, tuple, True, False or None; anything else stays a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _unrelated(items: Sequence[Item], n: int) -> tuple[memograft.Document, ...]:
    """The documents of the next item that is about another question and shares none with item `n`."""
    own, group = {d.text for d in items[n].documents}, items[n].group
    for item in (*items[n + 1 :], *items[:n]):
        same = group and item.group == group
        if item.documents and not same and not own & {d.text for d in item.documents}:
            return item.documents
    raise SettingsError(
        f"another item's documents must be memorized, got none in the set {items[n].set!r} that differ from those of "
        f"item {items[n].id}; ask more questions, or leave the method out"
    )


def _restricted(engine: Engine, item: Item) -> object:
    from memograft.evaluation.controls import Restricted

    return Restricted(engine, item)


def _context_aware(_engine: Engine, _item: Item, alpha: float | Literal["adaptive"]) -> object:
    return memograft.Cad(alpha)


def _layers(_engine: Engine, _item: Item, layers: Literal["low", "high"]) -> object:
    return memograft.Dola(layers)


_ONLY = "Answer only from the documents, even where they contradict what you know."

METHODS: dict[str, Method] = {
    "no document": Method(documents=False),
    "plain": Method(),
    "plain, restricted": Method(processor=_restricted),
    "only from the documents": Method(instruction=_ONLY),
    "few-shot": Method(shots=3),
    "RTD": Method(datastore=True),
    "CAD": Method(processor=_context_aware, options={"alpha": 0.5}),
    "AdaCAD": Method(processor=_context_aware, options={"alpha": "adaptive"}),
    "DoLa": Method(processor=_layers, options={"layers": "high"}),
    "memorized": Method(memory=lambda: memograft.FastMem()),
    "memorized, support gate": Method(memory=lambda: memograft.FastMem(gate="support")),
    "memorized, contrast 0.5": Method(memory=lambda: memograft.FastMem(contrast=0.5)),
    "memorized, contrast adaptive": Method(memory=lambda: memograft.FastMem(contrast="adaptive")),
    "memorized, CAD": Method(memory=lambda: memograft.FastMem(), processor=_context_aware, options={"alpha": 0.5}),
    "memorized, AdaCAD": Method(
        memory=lambda: memograft.FastMem(), processor=_context_aware, options={"alpha": "adaptive"}
    ),
    "memorized, faithful": Method(memory=lambda: memograft.FastMem.faithful()),
    "memorized, DoLa": Method(memory=lambda: memograft.FastMem(), processor=_layers, options={"layers": "high"}),
    "memorized, all documents": Method(memory=lambda: memograft.FastMem(relevance=None, conflicts=None)),
    "memorized, all documents, support gate": Method(
        memory=lambda: memograft.FastMem(relevance=None, conflicts=None, gate="support")
    ),
    "compacted 4x": Method(memory=lambda: memograft.Compacted(ratio=4)),
    "compacted 10x": Method(memory=lambda: memograft.Compacted(ratio=10)),
    "irrelevant document memorized": Method(memory=lambda: memograft.FastMem(), memorizes="another"),
    "paper's recipe": Method(memory=lambda: memograft.FastMem.paper()),
    "paper's recipe, lr 1e-4": Method(memory=lambda: memograft.FastMem.paper(learning_rate=1e-4)),
    "paper's recipe, lr 1e-3": Method(memory=lambda: memograft.FastMem.paper(learning_rate=1e-3)),
}
