"""Verify a vector store: read all of it and compare it with its checksums. Opening one checks less."""

from __future__ import annotations

import zlib
from pathlib import Path

from memograft.errors import StoreError, StoreLockedError
from memograft.passages import sums
from memograft.passages.cache import index_file
from memograft.passages.db import FILE_NAME, VECTORS_AT_ONCE, Database
from memograft.storage.disk import Findings, crc32

__all__ = ["compared", "inspected"]

_ORPHANS = "SELECT count(*) FROM checksums WHERE seq NOT IN (SELECT seq FROM passages)"
_UNSEALED = "SELECT count(*) = 0 FROM settings WHERE key = ?"


def inspected(folder: Path) -> Findings:
    """Find damage in a store's folder, and files without checksums. It may be written to meanwhile.

    Raises:
        StoreLockedError: another program has locked the database.
        OSError: a file cannot be read.
    """
    file = folder / FILE_NAME
    try:
        database = Database(folder, read_only=True)
    except StoreLockedError:
        raise
    except StoreError as error:
        return Findings({file: str(error)})
    try:
        found = compared(database)
        if not found.damaged:
            found.damaged.update(_index(database, folder))
    finally:
        database.close()
    return found


def compared(database: Database) -> Findings:
    """The findings for an open database, without the index file."""
    found, file = Findings(), database.file or Path(FILE_NAME)
    try:
        (verdict,) = database.rows("PRAGMA integrity_check(1)")[0]
        if verdict != "ok":
            database.refuse(f"it is damaged ({verdict.splitlines()[-1]})")
        if "embedder" in (settings := database.settings()):
            database.check_vectors(settings["embedder"]["dimension"])
        damaged, unsummed = _passages(database)
        if damaged:
            others = f" and {len(damaged) - 1} more" if damaged[1:] else ""
            database.refuse(f"it is damaged (passage {damaged[0]!r}{others} is not what was stored)")
        if database.rows(_ORPHANS)[0][0]:
            database.refuse("it is damaged (a checksum belongs to no passage)")
        if database.words_are_damaged(thoroughly=True):
            database.refuse_words()
        if unsummed or database.rows(_UNSEALED, [sums.KEY])[0][0]:
            found.unsummed.append(file)
    except StoreLockedError:
        raise
    except StoreError as error:
        found.damaged[file] = str(error)
    return found


def _passages(database: Database) -> tuple[list[str], bool]:
    """(ids of the passages that are damaged, whether any has no checksum)."""
    damaged, unsummed, seqs = [], False, database.seqs()
    for start in range(0, len(seqs), VECTORS_AT_ONCE):
        page = seqs[start : start + VECTORS_AT_ONCE].tolist()
        blobs = {seq: checksum == zlib.crc32(blob) for seq, blob, checksum in database.blobs(page)}
        for seq, id, text, metadata, checksum in database.passages(page):
            if checksum is None:
                unsummed = True
            elif checksum != sums.of_passage(id, text, metadata) or not blobs.get(seq, True):
                damaged.append(id.decode(errors="replace"))
    return damaged, unsummed


def _index(database: Database, folder: Path) -> dict[Path, str]:
    """The index file, if it does not match the database, with an error message."""
    pointer = database.settings().get("index_file")
    while pointer is not None:
        file = index_file(folder, pointer["number"])
        try:
            whole = crc32(file) == pointer["crc32"]
        except FileNotFoundError:
            whole = False
        if whole:
            break
        if pointer == (pointer := database.settings().get("index_file")):  # otherwise a writer has replaced it
            return {file: f"{file} is missing or damaged; open the store for writing, which builds it again"}
    return {}
