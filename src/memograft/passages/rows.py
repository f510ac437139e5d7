"""What one write does to all of a store's tables: a passage, its vector, checksums and words go in and out together.

Functions of a connection in a transaction, which is the caller's; `have_words` makes its own.
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
    """One passage on its way in; `vector` is the bytes of a (D,) float32 array."""

    id: str
    text: str
    metadata: str
    vector: bytes


def insert(connection: sqlite3.Connection, rows: Sequence[Passage], has_words: bool) -> list[int]:
    """Write passages whose ids are free; return their seqs, which are those that AUTOINCREMENT would give them."""
    ever = "(SELECT seq FROM sqlite_sequence WHERE name = 'passages')"
    ((last,),) = connection.execute(f"SELECT max(coalesce(max(seq), 0), coalesce({ever}, 0)) FROM passages")
    numbered = dict(enumerate(rows, start=last + 1))
    # Generators, so that an interrupt need not wait for the last row.
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
    """Delete passages that are there."""
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
    """(seq, text) of passages whose text is the one whose words were indexed, as far as its checksum tells."""
    fields = ", ".join(f"CAST(coalesce({name}, '') AS BLOB)" for name in ("id", "text", "metadata"))
    sql = f"SELECT seq, {fields}, passage FROM passages LEFT JOIN checksums USING (seq) WHERE seq IN {GIVEN}"
    found = connection.execute(sql, [json.dumps([int(seq) for seq in seqs])])
    return [
        (seq, text.decode(errors="replace"))
        for seq, id, text, metadata, checksum in found.fetchall()
        if checksum in (None, sums.of_passage(id, text, metadata))
    ]


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
