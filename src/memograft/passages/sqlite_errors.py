"""Convert SQLite's errors to Memograft's, with the file, the reason and the remedy."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from memograft.errors import StoreCorruptError, StoreError, StoreLockedError, StoreReadOnlyError

__all__ = ["damaged_words", "named", "refuse"]

_DAMAGE = ("Could not decode to UTF-8", "malformed JSON")  # SQLite reports damaged text as an error of the query


def refuse(file: Path | None, reason: str) -> NoReturn:
    """Raise StoreCorruptError for a database file."""
    raise StoreCorruptError(
        f"{file} cannot be used as a store: {reason}; restore it from a backup, or choose another folder and "
        "add the documents again"
    )


def damaged_words(file: Path | None) -> str:
    """The message for a damaged text index."""
    return f"{file} has a damaged text index; open the store for writing and compact() it, which builds the index again"


@contextmanager
def named(file: Path | None) -> Iterator[None]:
    """Convert errors of SQLite and of the file system."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:  # UnicodeDecodeError: SQLite's message quotes damaged text
        code = _code(error)
        damage = isinstance(error, UnicodeDecodeError) or str(error).startswith(_DAMAGE)
        if damage or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise StoreCorruptError(
                f"{file} is damaged or not a store ({error}); restore it from a backup, or choose another "
                "folder and add the documents again"
            ) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreLockedError(f"{file} is in use by another program ({error}); close it there") from error
        if code == sqlite3.SQLITE_READONLY:
            raise StoreReadOnlyError(f"{file} may not be written ({error}); change its permissions") from error
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            raise StoreError(
                f"{file} could not be written ({error}) and is unchanged; free some space, then try again"
            ) from error
        raise StoreError(f"{file} cannot be used ({error}); check its path and permissions") from error
    except OSError as error:
        raise StoreError(
            f"{file} could not be created ({error}); check its path, permissions and the free space"
        ) from error


def _code(error: Exception) -> int:
    """Return SQLite's primary result code, which is in the lower 8 bits."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
