"""Writes to all tables of a store together: a passage with its vector, checksums and words.

These functions run in the caller's transaction, except `have_words`, which starts its own.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from memograft.errors import StoreError
from memograft.passages import sums, words

__all__ = ["GIVEN", "Passage", "delete", "have_words", "insert", "sum_settings", "unseal_words"]

GIVEN = "(SELECT value FROM json_each(?))"  # of numbers or ids
_AT_ONCE = 2048


class Passage(NamedTuple):
    """A passage to write; `vector` is the bytes of a (D,) float32 array."""

    id: str
    text: str
    metadata: str
    vector: bytes


def insert(connection: sqlite3.Connection, rows: Sequence[Passage], has_words: bool) -> list[int]:
    """Insert passages with new ids and return their seqs, which are those that AUTOINCREMENT would assign."""
    ever = "(SELECT seq FROM sqlite_sequence WHERE name = 'passages')"
    ((last,),) = connection.execute(f"SELECT max(coalesce(max(seq), 0), coalesce({ever}, 0)) FROM passages")
    numbered = dict(enumerate(rows, start=last + 1))
    # Generators, so that an interrupt is handled between rows.
    connection.executemany(
        "INSERT INTO passages (seq, id, text, metadata) VALUES (?, ?, ?, ?)",
        ((seq, row.id, row.text, row.metadata) for seq, row in numbered.items()),
    )
    connection.executemany("INSERT INTO vectors VALUES (?, ?)", ((seq, row.vector) for seq, row in numbered.items()))
    connection.executemany(
        "INSERT INTO checksums VALUES (?, ?, ?)", ((seq, *_checksums(row)) for seq, row in numbered.items())
    )
    if has_words:
        words.add(connection, ((seq, row.text) for seq, row in numbered.items()))
    return list(numbered)


def _checksums(row: Passage) -> tuple[int, int]:
    passage = sums.of_passage(row.id.encode(), row.text.encode(), row.metadata.encode())
    return passage, zlib.crc32(row.vector)


def delete(connection: sqlite3.Connection, seqs: Sequence[int], has_words: bool) -> None:
    """Delete existing passages."""
    strange = False
    for start in range(0, len(seqs), _AT_ONCE):
        page = seqs[start : start + _AT_ONCE]
        if has_words:
            texts = _texts_that_were_stored(connection, page)
            words.remove(connection, texts)
            strange |= len(texts) < len(page)
        for table in ("passages", "vectors", "checksums"):
            connection.executemany(f"DELETE FROM {table} WHERE seq = ?", ((seq,) for seq in page))
    if strange:
        words.rebuild(connection)


def _texts_that_were_stored(connection: sqlite3.Connection, seqs: Sequence[int]) -> list[tuple[int, str]]:
    """(seq, text) of passages whose text is unchanged according to its checksum, so it is the indexed one."""
    fields = ", ".join(f"CAST(coalesce({name}, '') AS BLOB)" for name in ("id", "text", "metadata"))
    sql = f"SELECT seq, {fields}, passage FROM passages LEFT JOIN checksums USING (seq) WHERE seq IN {GIVEN}"
    found = connection.execute(sql, [json.dumps([int(seq) for seq in seqs])])
    return [
        (seq, text.decode(errors="replace"))
        for seq, id, text, metadata, checksum in found.fetchall()
        if checksum in (None, sums.of_passage(id, text, metadata))
    ]


def have_words(connection: sqlite3.Connection, file: Path | None, progress: bool) -> None:
    """Create a missing text index in a store that is opened for writing, if this SQLite has FTS5.

    Raises:
        StoreError: there is a text index, and this SQLite cannot update it.
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
            f"{file} has a text index, which only an SQLite with FTS5 can update, and that of this Python "
            f"({sqlite3.sqlite_version}) has no FTS5; open it with read_only=True, or use another Python"
        )


def sum_settings(connection: sqlite3.Connection) -> None:
    """Update the checksum of the settings."""
    # fetchall, because a cursor that an interrupt leaves open would block VACUUM.
    sum = sums.of_settings(connection.execute("SELECT key, value FROM settings").fetchall())
    connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", [sums.KEY, sum])


def unseal_words(connection: sqlite3.Connection) -> bool:
    """Delete the checksum of the text index before a change; return whether there is an index."""
    if connection.execute("DELETE FROM settings WHERE key = ?", [words.KEY]).rowcount:
        sum_settings(connection)
    return words.are_indexed(connection)
