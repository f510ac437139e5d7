"""Checksums of a store's passages, vectors and settings: CRC-32, beside them in the database.

SQLite finds pages that make no sense; a byte of a text or a vector that became another byte makes sense to it. A store
from before there were any gets the table when it is opened for writing: what is added from then on has checksums, and
all of it once it is compacted.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable
from functools import cache

from memograft.passages import words

KEY = "checksum"  # of the settings, among them
TABLE = "CREATE TABLE checksums (seq INTEGER PRIMARY KEY, passage INTEGER NOT NULL, vector INTEGER NOT NULL)"

_TABLES = (
    "SELECT name, sql FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' "
    f"AND name NOT IN {words.SHADOWS}"  # FTS5's own, which another SQLite may write otherwise
)


def of_passage(id: bytes, text: bytes, metadata: bytes) -> int:
    """The checksum of a passage's fields, UTF-8 each."""
    return zlib.crc32(b"\0".join((id, text, metadata)))


def of_settings(rows: Iterable[tuple[str, str]]) -> str:
    """The checksum of the settings, keys and values as they stand in the database, but for its own."""
    return str(zlib.crc32(repr(sorted(row for row in rows if row[0] != KEY)).encode()))


def have_table(connection: sqlite3.Connection, read_only: bool) -> None:
    """Let the table of checksums be there: for a reader of a store without, an empty one of its own."""
    if "checksums" not in dict(connection.execute(_TABLES)):
        connection.execute(TABLE.replace("TABLE", "TEMP TABLE", 1) if read_only else TABLE)


def is_schema(connection: sqlite3.Connection, schema: str, text_index: str | None) -> bool:
    """Whether the tables are those of a store, with or without checksums, letter for letter; so is its text index."""
    found, wanted = dict(connection.execute(_TABLES)), dict(_tables(schema))
    if text_index is not None:
        wanted["words"] = text_index
    return found in (wanted, {**wanted, **dict(_tables(TABLE))})


@cache
def _tables(schema: str) -> tuple[tuple[str, str], ...]:
    with sqlite3.connect(":memory:") as connection:
        connection.executescript(schema)
        found = tuple(connection.execute(_TABLES).fetchall())
    connection.close()
    return found
