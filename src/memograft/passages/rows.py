"""What one write does to all of a store's tables: a passage, its vector, checksums and words go in and out together.

Functions of a connection in a transaction, which is the caller's.
"""

from __future__ import annotations

import sqlite3
import zlib
from typing import NamedTuple

from memograft.passages import sums, words

__all__ = ["Passage", "delete", "insert", "sum_settings", "unseal_words"]


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
        words.add(connection, seq, row.text)
    return seq


def delete(connection: sqlite3.Connection, seq: int, has_words: bool) -> None:
    """Delete a passage."""
    knows_its_words = has_words and _is_what_was_stored(connection, seq)
    if knows_its_words:
        words.remove(connection, seq)
    for table in ("passages", "vectors", "checksums"):
        connection.execute(f"DELETE FROM {table} WHERE seq = ?", [seq])
    if has_words and not knows_its_words:
        words.rebuild(connection)


def _is_what_was_stored(connection: sqlite3.Connection, seq: int) -> bool:
    """Whether a passage's text is the one whose words were indexed, as far as its checksum tells."""
    fields = ", ".join(f"CAST({name} AS BLOB)" for name in ("id", "text", "metadata"))
    sql = f"SELECT {fields}, passage FROM passages JOIN checksums USING (seq) WHERE seq = ?"
    row = connection.execute(sql, [seq]).fetchone()
    return row is None or row[3] == sums.of_passage(*row[:3])


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
