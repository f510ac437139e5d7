"""CRC-32 checksums of a store's passages, vectors and settings, stored in the database.

SQLite detects malformed pages, but not a changed byte in a text or a vector. A store of a version without checksums
gets their table when it is opened for writing: passages added later have checksums, and all have them after compaction.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable
from functools import cache

from memograft.passages import words

KEY = "checksum"  # key of the settings' checksum among the settings
TABLE = "CREATE TABLE checksums (seq INTEGER PRIMARY KEY, passage INTEGER NOT NULL, vector INTEGER NOT NULL)"

_TABLES = (
    "SELECT name, sql FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' "
    f"AND name NOT IN {words.SHADOWS}"  # FTS5's own tables, which differ between versions of SQLite
)


def of_passage(id: bytes, text: bytes, metadata: bytes) -> int:
    """The checksum of a passage's fields, in UTF-8."""
    return zlib.crc32(b"\0".join((id, text, metadata)))


def of_settings(rows: Iterable[tuple[str, str]]) -> str:
    """The checksum of the settings as stored in the database, without the checksum itself."""
    return str(zlib.crc32(repr(sorted(row for row in rows if row[0] != KEY)).encode()))


def have_table(connection: sqlite3.Connection, read_only: bool) -> None:
    """Create a missing table of checksums; for a reader, as an empty temporary table."""
    if "checksums" not in dict(connection.execute(_TABLES)):
        connection.execute(TABLE.replace("TABLE", "TEMP TABLE", 1) if read_only else TABLE)


def is_schema(connection: sqlite3.Connection, schema: str, text_index: str | None) -> bool:
    """Whether the tables are exactly those of a store, with or without checksums, and so is its text index."""
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
