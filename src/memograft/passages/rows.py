"""What one write does to all of a store's tables: a passage, its vector, checksums and words go in and out together.

Functions of a connection in a transaction, which is the caller's; `have_words` makes its own.
"""

from __future__ import annotations

import sqlite3
import zlib
from pathlib import Path
from typing import NamedTuple

from memograft.errors import StoreError
from memograft.passages import sums, words

__all__ = ["Passage", "delete", "have_words", "insert", "sum_settings", "unseal_words"]


class Passage(NamedTuple):
    """One passage on its way in; `vector` is the bytes of a (D,) float32 array."""

    id: str
    text: str
    metadata: str
    vector: bytes


def insert(connection: sqlite3.Connection, row: Passage, has_words: bool) -> int:
    """Write a passage whose id is free; return its seq."""
    sql = "INSERT INTO passages (id, text, metadata) VALUES (?, ?, ?)"
    seq = connection.execute(sql, [row.id, row.text, row.metadata]).lastrowid
    assert seq is not None  # an INSERT always has one
    connection.execute("INSERT INTO vectors VALUES (?, ?)", [seq, row.vector])
    passage = sums.of_passage(row.id.encode(), row.text.encode(), row.metadata.encode())
    connection.execute("INSERT INTO checksums VALUES (?, ?, ?)", [seq, passage, zlib.crc32(row.vector)])
    if has_words:
        words.add(connection, [(seq, row.text)])
    return seq


def delete(connection: sqlite3.Connection, seq: int, has_words: bool) -> None:
    """Delete a passage."""
    text = _text_that_was_stored(connection, seq) if has_words else None
    if text is not None:
        words.remove(connection, seq, text)
    for table in ("passages", "vectors", "checksums"):
        connection.execute(f"DELETE FROM {table} WHERE seq = ?", [seq])
    if has_words and text is None:
        words.rebuild(connection)


def _text_that_was_stored(connection: sqlite3.Connection, seq: int) -> str | None:
    """A passage's text, if it is the one whose words were indexed, as far as its checksum tells."""
    fields = ", ".join(f"CAST(coalesce({name}, '') AS BLOB)" for name in ("id", "text", "metadata"))
    sql = f"SELECT {fields}, passage FROM passages LEFT JOIN checksums USING (seq) WHERE seq = ?"
    id, text, metadata, checksum = connection.execute(sql, [seq]).fetchone()
    is_it = checksum in (None, sums.of_passage(id, text, metadata))
    return text.decode(errors="replace") if is_it else None


def have_words(connection: sqlite3.Connection, file: Path | None, progress: bool) -> None:
    """Let a store that is to be written have a text index, where this SQLite can make one.

    Raises:
        StoreError: there is one, and this SQLite cannot keep it up to date.
    """
    indexed = words.are_indexed(connection)
    if words.is_available(connection):
        if not indexed:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                unseal_words(connection)
                words.create(connection, progress)
                connection.execute("PRAGMA user_version = 3")
    elif indexed:
        raise StoreError(
            f"{file} has a text index, which only an SQLite with FTS5 can keep up to date, and that of this Python "
            f"({sqlite3.sqlite_version}) has none; open it with read_only=True, or use another Python"
        )


def sum_settings(connection: sqlite3.Connection) -> None:
    """Renew the checksum of the settings."""
    # All at once: a cursor that an interrupt leaves open would keep VACUUM away.
    sum = sums.of_settings(connection.execute("SELECT key, value FROM settings").fetchall())
    connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", [sums.KEY, sum])


def unseal_words(connection: sqlite3.Connection) -> bool:
    """Let the checksum of a text index go that is about to change; return whether there is an index."""
    if connection.execute("DELETE FROM settings WHERE key = ?", [words.KEY]).rowcount:
        sum_settings(connection)
    return words.are_indexed(connection)
