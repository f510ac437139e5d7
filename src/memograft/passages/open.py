"""Open a store: lock it, choose its embedder and index, and check whether it may still be used.

The choices are stored in the database's settings `embedder` and `index`.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memograft.errors import (
    EmbedderMismatchError,
    SettingsError,
    StoreCorruptError,
    StoreError,
    StoreReadOnlyError,
)
from memograft.passages import words
from memograft.passages.cache import IndexCache, NoIndex
from memograft.passages.db import Database
from memograft.passages.embedders import Embedder, NoVectors, embedder_from_config
from memograft.passages.index import IndexSettings
from memograft.storage.locks import WriterLock

logger = logging.getLogger(__name__)


class Access:
    """Permission to use an open store, and to write to it, from construction until `close`, in this process.

    Args:
        folder: the store's folder, created for writing; None for a store in memory.
        read_only: do not write.
        lock_timeout: seconds to wait for another writer.

    Raises:
        StoreLockedError: another writer has the store open.
        StoreError, SettingsError: the folder cannot be used.
    """

    def __init__(self, folder: Path | None, read_only: bool, lock_timeout: float = 0.0) -> None:
        self.read_only, self.closed = read_only, False
        self._folder = folder
        self._process = os.getpid()
        self._lock = claim_folder(folder, read_only, lock_timeout)

    @property
    def inherited(self) -> bool:
        """Whether this process is a fork of the one that opened the store on disk. A store in memory was copied."""
        return self._folder is not None and os.getpid() != self._process

    def require_open(self) -> None:
        """Refuse to use a store that is closed or was opened by another process."""
        if self.inherited:  # SQLite connections must not be used after a fork
            raise StoreError(
                f"a store must be used by the process that opened it; {self._folder} was opened by the process "
                f"{self._process}, of which {os.getpid()} is a fork; open it again in the fork, with read_only=True "
                "if the other one may write"
            )
        if self.closed:
            raise StoreError(f"the store {self._folder or 'in memory'} is closed; open it again")

    def require_writable(self) -> None:
        """Refuse to write to a store that is read-only, closed, or of another process."""
        self.require_open()
        if self.read_only:
            raise StoreReadOnlyError(f"{self._folder} is open with read_only=True; open it without to change it")

    def close(self) -> None:
        """Release the writer's lock. A second call does nothing."""
        self.closed = True
        if self._lock:
            self._lock.release()


def claim_folder(folder: Path | None, read_only: bool, lock_timeout: float = 0.0) -> WriterLock | None:
    """Create a writer's folder and take its lock within `lock_timeout` seconds; None if no lock is needed."""
    if isinstance(lock_timeout, bool) or not isinstance(lock_timeout, int | float) or not lock_timeout >= 0:
        raise SettingsError(
            f"`lock_timeout` must be a number of seconds, 0 (do not wait) or more, got {lock_timeout!r}; math.inf "
            "waits as long as it takes"
        )
    if folder is None and read_only:
        raise SettingsError("a store in memory has nothing to read, got read_only=True without `path`; pass its path")
    if folder is None or read_only:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return WriterLock(folder / "writer.lock", lock_timeout)
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreCorruptError(f"a store is a folder, and {folder} is a file; choose another path") from error
    except (OSError, ValueError) as error:  # ValueError: a path with NUL
        raise StoreError(f"{folder} cannot be written ({error}); pass a folder that can") from error


def opened(
    folder: Path | None,
    embedder: Embedder | None,
    index: IndexSettings | None,
    *,
    read_only: bool,
    progress: bool,
    lock_timeout: float = 0.0,
) -> tuple[Access, Database, Embedder, IndexCache | NoIndex]:
    """Open all parts of a store, or none; with None for `embedder` and `index`, the store's own."""
    access = Access(folder, read_only, lock_timeout)
    try:
        database = Database(folder, read_only, progress)
        try:
            embedder = settled_embedder(database, embedder, read_only)
            if index is not None and embedder.dimension == 0:
                raise SettingsError(
                    f"`index` is a kind of vector index, got {index.kind!r}, and {database.file or 'this store'} has "
                    "no vectors: it is searched by its words alone; leave the index out, or make a new store with "
                    "vectors: VectorStore(embedder, path, index=...)"
                )
            if not database.is_large:
                database.check_vectors(embedder.dimension)
            settings = settled_index(database, index, embedder.dimension, read_only)
            if not database.is_large:
                mend_words(database, read_only)
            cache: IndexCache | NoIndex = NoIndex()
            if dimension := embedder.dimension:
                cache = IndexCache(database, folder, dimension, settings, read_only=read_only, progress=progress)
        except BaseException:
            database.close()
            raise
    except BaseException:
        access.close()
        raise
    return access, database, embedder, cache


def settled_embedder(database: Database, embedder: Embedder | None, read_only: bool) -> Embedder:
    """Return the given embedder if the store may use it, or build the store's own."""
    stored = database.settings().get("embedder")
    if stored is None:
        if read_only:
            raise StoreError(f"{database.file} is incomplete: its creation was interrupted; open it for writing")
        embedder = embedder or NoVectors()
        if embedder.dimension == 0 and not database.has_words:
            raise words.no_index(database.file)
        database.set(embedder=_config_of(embedder))
        return embedder
    embedder = embedder or embedder_from_config(stored["config"])
    if (embedder.fingerprint, embedder.dimension) != (stored["fingerprint"], stored["dimension"]):
        raise EmbedderMismatchError(
            f"{database.file} was built with the embedder {stored['fingerprint']!r} (D={stored['dimension']}), got "
            f"{embedder.fingerprint!r} (D={embedder.dimension}); leave `embedder` out, or build a new store"
        )
    return embedder


def mend_words(database: Database, read_only: bool) -> None:
    """Rebuild a damaged text index."""
    if not database.words_are_damaged():
        return
    if read_only:
        database.refuse_words()
    logger.info("rebuilding the text index of %s from its texts: its checksum is wrong", database.file)
    database.rebuild_words()


def _config_of(embedder: Embedder) -> dict[str, Any]:
    config = embedder.config()
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"`config()` of an embedder must return JSON values, got {config!r}; {error}") from error
    return {"fingerprint": embedder.fingerprint, "dimension": embedder.dimension, "config": config}


def settled_index(database: Database, wanted: IndexSettings | None, dimension: int, read_only: bool) -> IndexSettings:
    """Return the index settings: those given, else the store's, else the defaults. A writer stores them."""
    stored = database.settings().get("index")
    try:
        settings = wanted or IndexSettings(**(stored or {}))
    except (TypeError, SettingsError) as error:
        database.refuse(f"its settings are damaged ({error})")
    settings.check(dimension)
    if not read_only and stored != asdict(settings):
        database.set(index=asdict(settings))
    return settings
