"""`Cell`: the records of one method on one set of questions, in a file that is appended to during a run.

The first line of the file is the key: everything that determines the answers. A line per question follows. Records that
do not match this run (an incomplete last line, another order of questions) are asked again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, TypedDict, cast

from memograft.evaluation.items import Item

__all__ = ["Cell", "Measure", "Record"]

Measure = Literal["right", "clean", "hit", "em", "f1", "rouge_l"]


class Record(TypedDict, total=False):
    """The stored record of one answer; `records.record` documents the fields and when they are present."""

    id: str
    kind: str
    group: str
    right: bool
    clean: bool
    hit: bool
    em: bool
    f1: float
    rouge_l: float
    formed: bool
    belief: bool
    other: bool
    new_tokens: int
    chars: int
    finish_reason: str | None
    repeats: bool
    recites: int
    text: str
    error: str
    timings: dict[str, float]
    seconds: float
    commit: str
    loss_before: float | None
    loss_after: float | None
    kl: float | None
    steps: int
    rolled_back: bool
    reason: str | None
    memorized: int
    relevance: list[float | None]
    disagree: bool


class Cell:
    """The records of one cell of the table.

    Args:
        folder: folder of the cells; it must exist.
        method: name of the method.
        items: the questions, all of one set.
        about: JSON values of everything else that determines the answers.

    Attributes:
        records: one per question that was asked so far, in the order of the questions.
    """

    def __init__(self, folder: Path, method: str, items: Sequence[Item], about: Mapping[str, object]) -> None:
        questions = hashlib.sha256(json.dumps([asdict(item) for item in items]).encode()).hexdigest()[:16]
        self.method, self.items = method, items
        self._key = {"method": method, "set": items[0].set, "n": len(items), "questions": questions, **about}
        digest = hashlib.sha256(self._head().encode()).hexdigest()[:12]
        self._path = folder / f"{_slug(method)}.{_slug(items[0].set)}.{digest}.jsonl"
        self.records = self._read()

    def resume(self, batch: int) -> None:
        """Reduce the file to complete batches, so that the rest is asked in the same batches as otherwise."""
        if len(self.records) < len(self.items):
            del self.records[len(self.records) // batch * batch :]
        whole = self._path.with_suffix(".part")
        whole.write_text("".join([self._head(), *map(_line, self.records)]), encoding="utf-8")
        whole.replace(self._path)

    def add(self, records: Sequence[Record]) -> None:
        """Store the records of the next batch."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, records)))
        self.records += records

    def _head(self) -> str:
        return _line(self._key)

    def _read(self) -> list[Record]:
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        if lines[:1] != [self._head()]:
            return []
        records: list[Record] = []
        for line, item in zip(lines[1:], self.items, strict=False):
            record = _parsed(line)
            if record is None or record.get("id") != item.id:
                break
            records.append(record)
        return records


def _parsed(line: str) -> Record | None:
    """The record of a complete line, or None."""
    try:
        record = json.loads(line) if line.endswith("\n") else None
    except json.JSONDecodeError:
        return None
    return cast(Record, record) if isinstance(record, dict) else None


def _line(value: Mapping[str, object]) -> str:
    return json.dumps(value, sort_keys=True) + "\n"


def _slug(name: str) -> str:
    """The name as part of a file name. Different names may become equal; the digest distinguishes the files."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "-"
