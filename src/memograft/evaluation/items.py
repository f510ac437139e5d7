"""`Item`: a question whose right answers are known, and the files that hold them. Knows nothing of models.

A file has one JSON object a line (.jsonl, or .jsonl.gz):

    {"question": "...", "documents": ["...", {"text": "...", "id": "...", "metadata": {}}], "answer": "..."}

`answers`, a list of which any counts, may stand for `answer`. Optional strings: `set`, `id`, `belief`, `other`, `frame`
and `kind`, which mean what they mean in `Item`. Other fields are passed over.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NoReturn

from memograft.documents import Document, as_documents
from memograft.errors import SettingsError

__all__ = ["SPLITS", "Item", "read_items", "sets_of", "world"]

SPLITS = ("test", "tune")


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        id: to find it again; left out of a file, the number of its line.
        set: the questions it is counted with.
        question: as the model is asked it.
        documents: what was retrieved, highest-ranked first.
        answers: an answer that holds any of these is right.
        belief: what the model is thought to say by itself, "" if that is not known.
        other: what a lower-ranked document says instead, "" if none does.
        frame: the words of an answer besides subject and value, one wording a line ("plain, restricted" allows them).
        kind: right answers are also counted by this, "" for not at all.
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


def world(split: str, n: int | None = None) -> list[Item]:
    """The bundled questions about what the model "tiny" knows: the first `n` of each set of "test" or "tune".

    Raises:
        SettingsError: there is no such split.
    """
    if split not in SPLITS:
        raise SettingsError(f"`split` must be one of {SPLITS}, got {split!r}")
    with as_file(files("memograft") / "data" / "world" / f"{split}.jsonl.gz") as path:
        return read_items(path, n)


def read_items(path: str | Path, n: int | None = None) -> list[Item]:
    """The questions of a file, in its order: all, or the first `n` of each set.

    Raises:
        SettingsError: the file is missing, empty or damaged, or a line is not as described above.
    """
    path = Path(path)
    if not path.is_file():
        raise SettingsError(f"there is no file {path}; name a .jsonl or .jsonl.gz file of questions")
    items = [_Line(path, number, raw).item() for number, raw in _lines(path)]
    if not items:
        raise SettingsError(f"{path} must hold at least one question, got an empty file; write one JSON object a line")
    by_set = {name: [item for item in items if item.set == name][:n] for name in sets_of(items)}
    return [item for chosen in by_set.values() for item in chosen]


def sets_of(items: Sequence[Item]) -> list[str]:
    """The names of the sets, in the order in which they first occur."""
    return list(dict.fromkeys(item.set for item in items))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of the lines that are not blank."""
    opened: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SettingsError(f"{path} must be a whole gzip file, got a damaged one ({error}); pack it again") from error


class _Line:
    """One line of a file, on its way to an item; its complaints name both."""

    def __init__(self, path: Path, number: int, raw: bytes) -> None:
        self._path, self._number = path, number
        try:
            value = json.loads(raw.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            self._refuse(f"a line must be UTF-8, got byte {raw[error.start]:#04x}", "save the file as UTF-8", error)
        except (json.JSONDecodeError, RecursionError) as error:
            self._refuse(f"a line must be one JSON object ({error})", "write it with json.dumps", error)
        if not isinstance(value, dict):
            self._refuse(f"a line must be one JSON object, got {_named(value)}", 'write {"question": ...}')
        self._fields: dict[str, Any] = value

    def item(self) -> Item:
        """The item of this line."""
        return Item(
            id=self._text("id", str(self._number)),
            set=self._text("set", "all"),
            question=self._text("question"),
            documents=self._documents(),
            answers=self._answers(),
            belief=self._text("belief", ""),
            other=self._text("other", ""),
            frame=self._text("frame", ""),
            kind=self._text("kind", ""),
        )

    def _text(self, name: str, default: str | None = None) -> str:
        if name not in self._fields and default is not None:
            return default
        value = self._field(name)
        if not isinstance(value, str):
            self._refuse(f"`{name}` must be a string, got {_named(value)}", "put it in quotation marks")
        if default is None and not value.strip():
            self._refuse(f"`{name}` must not be empty, got {value!r}", "fill it in, or leave the line out")
        return value

    def _documents(self) -> tuple[Document, ...]:
        value = self._field("documents")
        if not isinstance(value, list) or not value:
            self._refuse(f"`documents` must be a list of at least one, got {_named(value)}", 'write ["text", ...]')
        try:
            documents = as_documents(value)
        except (SettingsError, TypeError, ValueError) as error:
            self._refuse(f"`documents` must hold strings or objects with `text` ({error})", "correct that one", error)
        for document in documents:
            if not document.text.strip():
                self._refuse("`documents` must hold text, got an empty one", "leave it out")
        return documents

    def _answers(self) -> tuple[str, ...]:
        if "answer" in self._fields and "answers" in self._fields:
            self._refuse("a line has `answer` or `answers`, got both", "keep one of them")
        if "answers" not in self._fields:
            return (self._text("answer"),)
        values = self._field("answers")
        if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
            self._refuse(f"`answers` must be a list of strings, none empty, got {_named(values)}", 'write ["...", ...]')
        return tuple(values)

    def _field(self, name: str) -> Any:
        if name not in self._fields:
            found = ", ".join(f"`{field}`" for field in self._fields) or "no field at all"
            self._refuse(f"a line needs the field `{name}`, got {found}", "add it")
        return self._fields[name]

    def _refuse(self, rule: str, remedy: str, cause: BaseException | None = None) -> NoReturn:
        raise SettingsError(f"{self._path}, line {self._number}: {rule}; {remedy}") from cause


def _named(value: object) -> str:
    """A value as an error shows it: short, and as JSON writes it."""
    said = json.dumps(value, ensure_ascii=False)
    return said if len(said) <= 60 else said[:57] + "..."
