"""Read files of records (JSON, JSONL and CSV), one text per record.

  .jsonl  one JSON value per line
  .json   a list; or an object: one record if it has a text field, else the only list among its values
  .csv    a header and rows; the separator is the one of , ; tab | that is most frequent in the header

The text of a string is the string. The text of an object is its first non-empty field of `FIELDS`, its title the field
`title`. The text of a CSV row without such a column is all of its cells, as lines of "column: value".
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from memograft.errors import SettingsError
from memograft.passages.reading import Text, read_characters, tidy, titled

__all__ = ["FIELDS", "RECORDS", "Records", "read_records"]

RECORDS = frozenset({".json", ".jsonl", ".csv"})
FIELDS = ("text", "content", "page_content", "body", "passage", "document")
_SEPARATORS = ",;\t|"
_NAMED = 3  # number of records without text that a message names


@dataclass(frozen=True)
class Records:
    """The content of a file of records.

    Attributes:
        texts: of each record that has a text, in the file's order.
        skipped: a message about records without text, with the places of the first ones; empty if there are none.
    """

    texts: tuple[Text, ...]
    skipped: str = ""


def read_records(path: Path) -> Records:
    """Read a .json, .jsonl or .csv file.

    Raises:
        SettingsError: it cannot be read, does not match its suffix, or no record has a text; the message names it.
    """
    read = {".json": _json, ".jsonl": _lines, ".csv": _rows}[path.suffix.lower()]
    texts, without = [], []
    for place, record in read(path, read_characters(path)):
        text = _text(record, path)
        if text is None:
            without.append(place)
        else:
            texts.append(text)
    fields = ", ".join(f"`{field}`" for field in FIELDS)
    if not texts:
        raise SettingsError(
            f"{path} must contain records that are text or have one of the fields {fields}, and none of its "
            f"{len(without)} has; rename a field, or remove the file"
        )
    where = ", ".join(without[:_NAMED]) + (", ..." if len(without) > _NAMED else "")
    skipped = f"{len(without)} of {len(texts) + len(without)} records hold no text ({where}): none of {fields}"
    return Records(tuple(texts), skipped if without else "")


def _text(record: object, path: Path) -> Text | None:
    fields: Mapping[object, object] = record if isinstance(record, Mapping) else {"text": record}
    found = (tidy(value) for name in FIELDS if isinstance(value := fields.get(name), str))
    text = next((text for text in found if text), None)
    title = fields.get("title")
    return None if text is None else Text(titled(title if isinstance(title, str) else "", text, path), text)


def _json(path: Path, text: str) -> Iterator[tuple[str, object]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path} must be JSON, and is not ({error}); correct it, or remove it") from error
    if isinstance(value, Mapping) and _text(value, path) is None:
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        value = lists[0] if len(lists) == 1 else value
    for number, record in enumerate(value if isinstance(value, list) else [value], 1):
        yield f"record {number}", record


def _lines(_path: Path, text: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also split at U+2028
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError):
                yield f"line {number}, which is no JSON", None


def _rows(path: Path, text: str) -> Iterator[tuple[str, object]]:
    header = text.lstrip().split("\n", 1)[0]
    reader = csv.reader(StringIO(text.lstrip()), delimiter=max(_SEPARATORS, key=header.count), strict=True)
    try:
        columns = [name.strip() for name in next(reader, [])]
        for number, cells in enumerate(reader, 2):
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(columns):
                yield f"row {number}, which has more cells than the header", None
                continue
            row = {name: cell.strip() for name, cell in zip(columns, cells, strict=False) if cell.strip()}
            lowered = {name.lower(): cell for name, cell in row.items()}
            whole = "\n".join(f"{name}: {cell}" for name, cell in row.items())
            yield f"row {number}", lowered if set(FIELDS) & {c.lower() for c in columns} else {**lowered, "text": whole}
    except csv.Error as error:
        raise SettingsError(f"{path} must be CSV, and is not ({error}); save it again, or remove it") from error
