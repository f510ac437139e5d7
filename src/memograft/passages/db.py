"""The SQLite part of a store: passages, their metadata and their vectors. Everything else is derived from it.

Rows are plain values: ids, texts, JSON strings, (N, D) float32 arrays. Every passage has a `seq`, an int64 that is
never reused (AUTOINCREMENT). A replaced passage gets a new seq, so derived data can be updated by comparing sets of
seqs. Texts and vectors are compared with their checksums when they are read, see `passages/sums.py`. The journal is WAL
with synchronous=FULL: a commit that has returned survives a crash or a power cut.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from memograft.documents import Document
from memograft.errors import StoreCorruptError, StoreError
from memograft.passages import sums, words
from memograft.passages.rows import GIVEN, Passage, delete, have_words, insert, sum_settings, unseal_words
from memograft.passages.sqlite_errors import damaged_words, named, refuse
from memograft.storage.disk import is_there, sync
from memograft.storage.locks import held_in_forks

__all__ = ["FILE_NAME", "VECTORS_AT_ONCE", "Database"]

FILE_NAME = "passages.sqlite3"
CHECKED_WHOLE = 2**30  # bytes up to which a file is read completely when it is opened
VECTORS_AT_ONCE = 2048  # rows per step wherever vectors are read: 8 MB at D=1024

T = TypeVar("T")

_APPLICATION_ID = 0x4D475331  # "MGS1"
_FORMATS = {1: None, 2: words.OLD_TABLE, 3: words.TABLE}  # format -> its text index, if it has one
_SETTINGS = {  # key -> fields of its value
    "embedder": {"fingerprint", "dimension", "config"},
    "index": None,
    "index_file": {"number", "crc32", "settings"},
    words.KEY: {"crc32"},
}
_TABLES = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE passages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, text TEXT NOT NULL, metadata TEXT NOT NULL
);
-- apart from the passages, so that a filter over all the metadata does not page through the vectors
CREATE TABLE vectors (seq INTEGER PRIMARY KEY, vector BLOB NOT NULL);
"""
_SCHEMA = f"""{_TABLES}{sums.TABLE};
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = 1;
"""


class Database:
    """An open database. Its methods may be called from any thread.

    A transaction is a `with` on the mutex and the connection, which commits, or rolls back after any exception. Both
    are implemented in C, so an interrupt cannot leave either of them locked (see `locks.ReadWriteLock`).

    Args:
        folder: the store's folder, which exists; None keeps everything in memory.
        read_only: never write, and see commits of a writer in another process.
        progress: show a progress bar when the texts of an older store without a text index are indexed.

    Raises:
        StoreCorruptError: the file is damaged or is not a store.
        StoreError: there is no file to read, it cannot be opened, or its text index cannot be kept up to date.
    """

    def __init__(self, folder: Path | None, read_only: bool, progress: bool = False) -> None:
        self.file = folder / FILE_NAME if folder else None
        self.is_large = False  # whether the file was too large to be read completely when it was opened
        self._mutex = held_in_forks(threading.RLock())  # SQLite has process-wide locks
        with self._mutex, self._errors():
            if self.file is None:
                self._connection = _connect(":memory:")
                self._connection.executescript(_SCHEMA)
            else:
                if not is_there(self.file):
                    self._make(self.file, read_only)
                self._connection = self._opened(self.file, read_only)
            if not read_only:
                try:
                    have_words(self._connection, self.file, progress)
                except BaseException:
                    self._connection.close()
                    raise

    def _make(self, file: Path, read_only: bool) -> None:
        if read_only:
            raise StoreError(f"{file.parent} holds no store to read; create it with read_only=False, or check the path")
        if file.with_name(f"{file.name}-wal").exists():  # SQLite would replay it into the new file
            self.refuse("it is missing although its write-ahead log is there")
        _create(file)

    def _opened(self, file: Path, read_only: bool) -> sqlite3.Connection:
        self.is_large = file.stat().st_size > CHECKED_WHOLE
        connection = _connect(f"{file.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}")
        try:
            try:
                self._check(connection)
            except sqlite3.OperationalError:
                # On a read-only medium, SQLite cannot create its shared-memory file. In immutable mode it does not need
                # one, but it ignores a write-ahead log.
                log = file.with_name(f"{file.name}-wal")
                if not read_only or os.access(file.parent, os.W_OK) or (log.exists() and log.stat().st_size):
                    raise
                connection.close()
                connection = _connect(f"{file.absolute().as_uri()}?mode=ro&immutable=1")
                self._check(connection)
            if not read_only:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
            sums.have_table(connection, read_only)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        """Refuse a damaged or foreign file. Reads it completely if it is not large, about a second per gigabyte."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if application != _APPLICATION_ID:
            self.refuse("it is not a Memograft store")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in _FORMATS:
            self.refuse(f"its format is {version} and this Memograft reads formats 1 to {max(_FORMATS)}")
        if not sums.is_schema(connection, _TABLES, _FORMATS[version]):
            self.refuse("it is damaged (its tables are not those of a store)")
        # SQLite refuses a truncated file at the first query, and a malformed page when it reads it.
        if not self.is_large:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                self.refuse(f"it is damaged ({verdict.splitlines()[-1]})")

    def check_vectors(self, dimension: int) -> None:
        """Refuse a file in which a passage lacks its vector of D float32 numbers."""
        sql = "SELECT p.id FROM passages p LEFT JOIN vectors v USING (seq) WHERE length(v.vector) IS NOT ? LIMIT 1"
        for (passage,) in self.rows(sql, [4 * dimension]):
            self.refuse(f"it is damaged (passage {passage!r} has no vector of {dimension} numbers)")

    def refuse(self, reason: str) -> NoReturn:
        """Raise StoreCorruptError for the database file."""
        refuse(self.file, reason)

    def refuse_words(self) -> NoReturn:
        """Raise StoreCorruptError for the text index."""
        raise StoreCorruptError(damaged_words(self.file))

    def _errors(self) -> AbstractContextManager[None]:
        return named(self.file)

    def at_once(self, read: Callable[[], T]) -> T:
        """Call `read` in one read transaction, so that all its queries see the same commits."""
        with self._errors(), self._mutex, self._connection as connection:
            connection.execute("BEGIN")
            return read()

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Run one query to its end."""
        with self._mutex, self._errors():
            return self._connection.execute(sql, parameters).fetchall()

    def close(self) -> None:
        """Close the connection; SQLite merges the write-ahead log into the file."""
        with self._mutex:
            self._connection.close()

    # settings ---------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Return every setting."""
        rows = self.rows("SELECT key, value FROM settings")
        try:
            if dict(rows).get(sums.KEY) not in (None, sums.of_settings(rows)):
                self.refuse("its settings are damaged (their checksum is wrong)")
            settings = {key: json.loads(value) for key, value in rows if key != sums.KEY}
        except (TypeError, ValueError, RecursionError) as error:
            self.refuse(f"its settings are damaged ({error})")
        for key, value in settings.items():
            if not isinstance(value, dict) or key not in _SETTINGS or _SETTINGS[key] not in (None, set(value)):
                self.refuse(f"its settings are damaged (there is no {key!r} of this form)")
        return settings

    def set(self, **settings: Any) -> None:
        """Store settings whose values are JSON."""
        with self._errors(), self._mutex, self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            rows = [(key, json.dumps(value)) for key, value in settings.items()]
            connection.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", rows)
            sum_settings(connection)

    # words ------------------------------------------------------------------------------------------------------

    @property
    def has_words(self) -> bool:
        """Whether the store has a text index that this SQLite can search."""
        with self._errors(), self._mutex:
            return words.are_indexed(self._connection) and words.is_available(self._connection)

    def matching(
        self, question: str, k: int, condition: str | None = None, parameters: Sequence[Any] = ()
    ) -> list[tuple[int, float]]:
        """Return (seq, BM25 score) of the k best passages among those that share a word with the question.

        Raises:
            StoreError: there is no usable text index.
        """
        if not self.has_words:
            raise words.no_index(self.file)
        wanted = words.expression(question)
        return self.rows(words.best(condition), [wanted, *parameters, min(k, 2**31)]) if wanted else []

    def others(
        self, known: Sequence[int], k: int, condition: str = "1", parameters: Sequence[Any] = ()
    ) -> list[tuple[int, float]]:
        """Return (seq, 0.0) of k passages that are not in `known`, oldest first."""
        sql = f"SELECT seq, 0.0 FROM passages WHERE seq NOT IN {GIVEN} AND ({condition}) ORDER BY seq LIMIT ?"
        return self.rows(sql, [json.dumps(list(known)), *parameters, min(k, 2**31)])

    def seal_words(self) -> None:
        """Store the checksum of the text index; it is valid until the next write.

        Without one, `verify` compares the index with the texts. It must do so if the index was not checked at opening.
        """
        with self._mutex, self._errors():
            if self.has_words and not self.is_large and words.KEY not in self.settings():
                self.set(**{words.KEY: {"crc32": words.checksum(self._connection)}})

    def words_are_damaged(self, *, thoroughly: bool = False) -> bool:
        """Whether the text index is damaged. Without a checksum, it is only checked if `thoroughly`."""

        def read() -> bool:
            if words.are_indexed(self._connection) and (seal := self.settings().get(words.KEY)):
                return bool(seal["crc32"] != words.checksum(self._connection))
            return thoroughly and self.has_words and not words.are_right(self._connection)

        return self.at_once(read)

    def rebuild_words(self) -> None:
        """Rebuild the text index."""
        with self._errors(), self._mutex, self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            if unseal_words(connection):
                words.rebuild(connection)

    # passages ---------------------------------------------------------------------------------------------------

    def upsert(self, rows: Sequence[Passage]) -> tuple[list[int], list[int]]:
        """Insert or replace passages with different ids; return (replaced seqs, new seqs in the order of `rows`)."""
        ids = json.dumps([row.id for row in rows])
        with self._errors(), self._mutex, self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            has_words = unseal_words(connection)
            found = connection.execute(f"SELECT seq FROM passages WHERE id IN {GIVEN} ORDER BY seq", [ids]).fetchall()
            gone = [seq for (seq,) in found]
            delete(connection, gone, has_words)
            return gone, insert(connection, rows, has_words)

    def remove(self, seqs: Sequence[int]) -> None:
        """Delete passages."""
        with self._errors(), self._mutex, self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            delete(connection, seqs, unseal_words(connection))

    def sum_up(self) -> None:
        """Add missing checksums."""
        with self._errors(), self._mutex, self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            without = self.seqs("seq NOT IN (SELECT seq FROM checksums)").tolist()
            for start in range(0, len(without), VECTORS_AT_ONCE):
                page = without[start : start + VECTORS_AT_ONCE]
                for (seq, id, text, metadata, _), (_, blob, _) in zip(
                    self.passages(page), self.blobs(page), strict=True
                ):
                    sum = sums.of_passage(id, text, metadata)
                    connection.execute("INSERT INTO checksums VALUES (?, ?, ?)", [seq, sum, zlib.crc32(blob)])

    def seqs(self, condition: str = "1", parameters: Sequence[Any] = ()) -> NDArray[np.int64]:
        """Return the seqs of the passages that meet an SQL condition, in ascending order."""
        # A cursor, because a list of rows takes 10 times as much memory. No ORDER BY, because it would make SQLite read
        # all texts instead of the index of ids.
        with self._mutex, self._errors(), closing(self._connection.cursor()) as found:
            found.execute(f"SELECT seq FROM passages WHERE {condition}", parameters)
            return np.sort(np.fromiter((seq for (seq,) in found), np.int64))

    def count(self, condition: str = "1", parameters: Sequence[object] = ()) -> int:
        """Return the number of passages that meet an SQL condition."""
        return int(self.rows(f"SELECT count(*) FROM passages WHERE {condition}", parameters)[0][0])

    def seqs_of_ids(self, ids: Sequence[str]) -> list[int | None]:
        """Return one seq per id; None for an unknown id."""
        with self._mutex:
            found = [self.rows("SELECT seq FROM passages WHERE id = ?", [passage]) for passage in ids]
        return [rows[0][0] if rows else None for rows in found]

    def documents(self, seqs: Sequence[int]) -> dict[int, Document]:
        """Return the documents by seq, without deleted ones."""
        found = {}
        for seq, id, text, metadata, checksum in self.passages(seqs):
            if checksum is not None and checksum != sums.of_passage(id, text, metadata):
                self.refuse(f"it is damaged (passage {id.decode(errors='replace')!r} is not what was stored)")
            try:
                found[seq] = Document(text.decode(), id.decode(), json.loads(metadata))
            except (ValueError, RecursionError) as error:
                self.refuse(f"it is damaged (a passage's text or metadata: {error})")
        return found

    def passages(self, seqs: Sequence[int]) -> list[tuple[int, bytes, bytes, bytes, int | None]]:
        """Return (seq, id, text, metadata, checksum or None) as raw bytes, without deleted passages."""
        fields = ", ".join(f"CAST(coalesce({name}, '') AS BLOB)" for name in ("id", "text", "metadata"))
        sql = f"SELECT seq, {fields}, passage FROM passages LEFT JOIN checksums USING (seq) WHERE seq IN {GIVEN}"
        return self.rows(f"{sql} ORDER BY seq", [json.dumps([int(seq) for seq in seqs])])

    def vectors(self, seqs: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield (seqs, (N, D) vectors) in steps, by ascending seq, without deleted passages."""
        for start in range(0, len(seqs), VECTORS_AT_ONCE):
            if found := self.blobs(seqs[start : start + VECTORS_AT_ONCE].tolist()):
                for seq, blob, checksum in found:
                    if checksum is not None and checksum != zlib.crc32(blob):
                        self.refuse(f"it is damaged (the vector of passage number {seq} is not what was stored)")
                matrix = np.frombuffer(b"".join(blob for _, blob, _ in found), np.float32)
                yield np.array([seq for seq, *_ in found], np.int64), matrix.reshape(len(found), -1)

    def blobs(self, seqs: Sequence[int]) -> list[tuple[int, bytes, int | None]]:
        """Return (seq, vector, checksum or None), without deleted passages."""
        sql = f"""
            SELECT seq, CAST(vectors.vector AS BLOB), checksums.vector FROM vectors LEFT JOIN checksums USING (seq)
            WHERE seq IN {GIVEN} ORDER BY seq
        """
        return self.rows(sql, [json.dumps(seqs)])

    def data_version(self) -> int:
        """Return a number that changes when another process commits."""
        return int(self.rows("PRAGMA data_version")[0][0])

    def shrink(self) -> None:
        """Return the space of deleted passages to the file system."""
        with self._mutex, self._errors():
            for command in ("VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
                self._connection.execute(command)


def _connect(target: str) -> sqlite3.Connection:
    # The caller's mutex replaces SQLite's check that a connection stays in one thread.
    connection = sqlite3.connect(target, uri=True, timeout=30, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def _create(file: Path) -> None:
    """Make an empty database under another name and rename it, so an empty file of this name is always damage."""
    draft = file.with_name(f"{file.name}.new")
    draft.unlink(missing_ok=True)
    connection = _connect(f"{draft.absolute().as_uri()}?mode=rwc")
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
    finally:
        connection.close()
    draft.rename(file)
    sync(file.parent)
