"""What a store settles when it opens: who may write, which embedder, which index.

What was decided when the store was new is kept in the database's settings `embedder` and `index`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memograft.embedders import Embedder, LexicalEmbedder, embedder_from_config
from memograft.errors import EmbedderMismatchError, SettingsError, StoreCorruptError, StoreError
from memograft.store.cache import IndexCache
from memograft.store.db import Database
from memograft.store.index import IndexSettings
from memograft.store.locks import WriterLock


def claim_folder(folder: Path | None, read_only: bool) -> WriterLock | None:
    """Make a writer's folder and take its lock; None where no lock is needed."""
    if folder is None and read_only:
        raise SettingsError("a store in memory has nothing to read, got read_only=True without `path`; pass its path")
    if folder is None or read_only:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return WriterLock(folder / "writer.lock")
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreCorruptError(f"a store is a folder, and {folder} is a file; choose another path") from error
    except OSError as error:
        raise StoreError(f"{folder} cannot be written ({error}); pass a folder that can") from error


def opened(
    folder: Path | None,
    embedder: Embedder | None,
    index: IndexSettings | None,
    *,
    read_only: bool,
    progress: bool,
) -> tuple[WriterLock | None, Database, Embedder, IndexCache]:
    """Open everything that a store works with, or nothing; `embedder` and `index` are None for the store's own."""
    lock = claim_folder(folder, read_only)
    try:
        database = Database(folder, read_only)
        try:
            embedder = settled_embedder(database, embedder, read_only)
            database.check_vectors(embedder.dimension)
            settings = settled_index(database, index, read_only)
            cache = IndexCache(database, folder, embedder.dimension, settings, read_only=read_only, progress=progress)
        except BaseException:
            database.close()
            raise
    except BaseException:
        if lock:
            lock.release()
        raise
    return lock, database, embedder, cache


def settled_embedder(database: Database, embedder: Embedder | None, read_only: bool) -> Embedder:
    """Take the embedder that was given if the store may use it, else build the store's own."""
    stored = database.settings().get("embedder")
    if stored is None:
        if read_only:
            raise StoreError(f"{database.file} is not finished, as its first opening was cut off; open it for writing")
        embedder = embedder or LexicalEmbedder()
        database.set(embedder=_config_of(embedder))
        return embedder
    embedder = embedder or embedder_from_config(stored["config"])
    if (embedder.fingerprint, embedder.dimension) != (stored["fingerprint"], stored["dimension"]):
        raise EmbedderMismatchError(
            f"{database.file} was built with the embedder {stored['fingerprint']!r} (D={stored['dimension']}), got "
            f"{embedder.fingerprint!r} (D={embedder.dimension}); leave `embedder` out, or build a new store"
        )
    return embedder


def _config_of(embedder: Embedder) -> dict[str, Any]:
    config = embedder.config()
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"`config()` of an embedder must return JSON values, got {config!r}; {error}") from error
    return {"fingerprint": embedder.fingerprint, "dimension": embedder.dimension, "config": config}


def settled_index(database: Database, wanted: IndexSettings | None, read_only: bool) -> IndexSettings:
    """Return the settings to search with: those wanted, else the store's, else the defaults; a writer keeps them."""
    stored = database.settings().get("index")
    try:
        settings = wanted or IndexSettings(**(stored or {}))
    except (TypeError, SettingsError) as error:
        database.refuse(f"its settings are damaged ({error})")
    if not read_only and stored != asdict(settings):
        database.set(index=asdict(settings))
    return settings
