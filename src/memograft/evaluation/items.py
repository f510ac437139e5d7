"""`Item`: a question with known right answers, and the format of files with such questions.

A file has one JSON object per line (.jsonl, optionally compressed: .jsonl.gz, .jsonl.xz):

    {"question": "...", "documents": ["...", {"text": "...", "id": "...", "metadata": {}}], "answer": "..."}

`answers`, a list of which any is right, may replace `answer`. Optional strings, with the same meaning as in `Item`:
`set`, `id`, `belief`, `other`, `frame`, `kind`, `group` and `query`. Other fields are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

from memograft.documents import Document, as_documents
from memograft.errors import SettingsError
from memograft.evaluation.entry import Entry, named
from memograft.evaluation.files import entries

__all__ = ["SPLITS", "Item", "Task", "own_item", "read_items", "sets_of", "world"]

SPLITS = ("test", "tune")
Task = Literal["qa", "summary", "choice"]


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        id: identifies it; by default the number of its line.
        set: the set that it is counted with.
        question: the text that the model is asked.
        documents: the retrieved documents, highest-ranked first.
        answers: an answer that contains any of these is right.
        belief: what the model presumably answers without documents, "" if unknown.
        other: what a lower-ranked document says instead, "" if none does.
        frame: the other words of an answer, one wording per line; "plain, restricted" allows them.
        kind: right answers are also counted per kind; "" for none.
        group: items of a group are not independent, so intervals are clustered by it; "" for a group of its own.
        query: the question alone if `question` has more text; documents are judged by it. None: `question`.
        task: "qa" (the text is searched for an answer), "summary" (`answers` are reference summaries), or "choice"
            (between two candidates in the question: `answers` is the right one, `belief` the other).
        protocol: how the answer is extracted from the text, a name of `protocol.PROTOCOLS`.
    """

    id: str
    set: str
    question: str
    documents: tuple[Document, ...]
    answers: tuple[str, ...]
    belief: str = ""
    other: str = ""
    frame: str = ""
    kind: str = ""
    group: str = ""
    query: str | None = None
    task: Task = "qa"
    protocol: str = "plain"


def world(split: str, n: int | None = None) -> list[Item]:
    """The bundled questions about facts that the model "tiny" knows: the first `n` of each set of "test" or "tune".

    Raises:
        SettingsError: there is no such split.
    """
    if split not in SPLITS:
        raise SettingsError(f"`split` must be one of {SPLITS}, got {split!r}")
    with as_file(files("memograft") / "data" / "world" / f"{split}.jsonl.gz") as path:
        return read_items(path, n)


def read_items(path: str | Path, n: int | None = None) -> list[Item]:
    """The questions of a file, in order: all, or the first `n` of each set.

    Raises:
        SettingsError: the file is missing, empty or damaged, or a line does not have the format above.
    """
    items = [own_item(entry) for entry in entries(path)]
    if not items:
        raise SettingsError(f"{path} must hold at least one question, got an empty file; write one JSON object a line")
    return _first(items, n)


def sets_of(items: Sequence[Item]) -> list[str]:
    """The names of the sets, in the order in which they first occur."""
    return list(dict.fromkeys(item.set for item in items))


def own_item(entry: Entry) -> Item:
    """The item of one line.

    Raises:
        SettingsError: the line does not have the format above.
    """
    return Item(
        id=entry.text("id", default=entry.place.removeprefix("line ")),
        set=entry.text("set", default="all"),
        question=entry.text("question"),
        documents=_documents(entry),
        answers=_answers(entry),
        belief=entry.text("belief", default=""),
        other=entry.text("other", default=""),
        frame=entry.text("frame", default=""),
        kind=entry.text("kind", default=""),
        group=entry.text("group", default=""),
        query=entry.text("query") if entry.has("query") else None,
    )


def _first(items: Sequence[Item], n: int | None) -> list[Item]:
    by_set = {name: [item for item in items if item.set == name][:n] for name in sets_of(items)}
    return [item for chosen in by_set.values() for item in chosen]


def _documents(entry: Entry) -> tuple[Document, ...]:
    value = entry.value("documents")
    if not isinstance(value, list) or not value:
        entry.refuse(f"`documents` must be a list of at least one, got {named(value)}", 'write ["text", ...]')
    try:
        documents = as_documents(value)
    except (SettingsError, TypeError, ValueError) as error:
        entry.refuse(f"`documents` must hold strings or objects with `text` ({error})", "correct that one", error)
    if not all(document.text.strip() for document in documents):
        entry.refuse("`documents` must hold text, got an empty one", "leave it out")
    return documents


def _answers(entry: Entry) -> tuple[str, ...]:
    if entry.has("answer", "answers"):
        entry.refuse("a line has `answer` or `answers`, got both", "keep one of them")
    if not entry.has("answers"):
        return (entry.text("answer"),)
    values = entry.value("answers")
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
        entry.refuse(f"`answers` must be a list of strings, none empty, got {named(values)}", 'write ["...", ...]')
    return tuple(values)
