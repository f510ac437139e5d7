"""`StoreRoom`: the vector stores of a tenant, by their names.

    <folder>/<name>/      a store as `VectorStore` writes it

Without a folder they are in process memory only. Stores of the operator (`--store`) are beside them in every room, and
only to be read.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from memograft.documents import Document
from memograft.errors import (
    EmbedderMismatchError,
    FilterError,
    SettingsError,
    StoreError,
    StoreLockedError,
    StoreReadOnlyError,
)
from memograft.passages.db import FILE_NAME
from memograft.passages.embedders import Embedder
from memograft.passages.vector_store import Hit, VectorStore
from memograft.server.errors import ApiError, refused
from memograft.server.schemas import SearchOptions
from memograft.server.settings import ServerSettings
from memograft.storage.publish import clear_up, withdraw

__all__ = ["StoreRoom", "open_store"]

_log = logging.getLogger("memograft.server")
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")


class StoreRoom:
    """Stores by their names. Methods may be called from any thread; they block, so not from an event loop.

    Args:
        settings: the limits.
        embedder: of new stores; None: they are searched by words only.
        shared: the operator's stores.
        folder: None keeps the tenant's stores in process memory only.
    """

    def __init__(
        self,
        settings: ServerSettings,
        embedder: Embedder | None,
        shared: Mapping[str, VectorStore],
        folder: Path | None = None,
    ) -> None:
        self._settings, self._embedder, self._shared, self._folder = settings, embedder, shared, folder
        self._changing = threading.RLock()  # one change at a time
        self._lock = threading.RLock()  # of the open stores; never held for long
        self._open: dict[str, VectorStore] = {}
        if folder is not None:
            clear_up(folder)

    def names(self) -> list[str]:
        """The names of all stores."""
        return sorted({*self._own(), *self._shared})

    def create(self, name: str) -> dict[str, object]:
        """Make an empty store, and tell about it.

        Raises:
            ApiError: 400 if the name is not valid, 409 if it exists or there is no room.
        """
        if not _NAME.fullmatch(name):
            raise refused(
                "name",
                "`name` must be up to 64 small letters, digits, '.', '_' and '-', and begin and end with a letter or a "
                f"digit, got {name!r:.80}",
            )
        with self._changing:
            if name in self.names():
                raise ApiError(
                    409, f"there is a store {name!r} already; delete it, or choose another name", param="name"
                )
            if len(self._own()) >= self._settings.max_stores:
                most = self._settings.max_stores
                said = f"a tenant may have {most} stores; delete one"
                said = said if most else "this server has only its operator's stores; send documents instead"
                raise ApiError(409, said, code="stores_full")
            with _store_errors(name), self._lock:
                self._open[name] = VectorStore(self._embedder, self._path(name), progress=False)
        return self.about(name)

    def get(self, name: str) -> VectorStore:
        """An open store.

        Raises:
            ApiError: 404; 409 if another process writes to it.
        """
        with self._lock:
            found = self._shared.get(name) or self._open.get(name)
            if found is None and name in self._own():
                path = self._path(name)
                assert path is not None
                with _store_errors(name):
                    found = self._open[name] = open_store(path, self._embedder)
        if found is None:
            raise ApiError(
                404,
                f"there is no store {name!r:.80}; GET /v1/stores lists yours, and POST /v1/stores makes one",
                param="store",
                code="store_not_found",
            )
        return found

    @contextmanager
    def using(self, name: str) -> Iterator[VectorStore]:
        """A store, with its exceptions as errors for clients.

        Raises:
            ApiError: as `get`; 403 for a change of a store that is only to be read.
        """
        store = self.get(name)
        with _store_errors(name):
            try:
                yield store
            except StoreError:
                self.get(name)  # raises if it was deleted meanwhile
                raise

    def about(self, name: str) -> dict[str, object]:
        """A store in responses."""
        with self.using(name) as store:
            return {
                "name": name,
                "object": "store",
                "documents": len(store),
                "bytes": self._size(name),
                "dimensions": store.embedder.dimension or None,
                "read_only": name in self._shared,
            }

    def shown(self, name: str, document: Document) -> Document:
        """A document of a store for responses: those of the operator's without the folder that was indexed."""
        if name not in self._shared:
            return document
        return replace(document, metadata={key: value for key, value in document.metadata.items() if key != "root"})

    def search(self, name: str, query: str, how: SearchOptions) -> list[Hit]:
        """The documents of a store that are closest to a question, best first.

        Raises:
            ApiError, SettingsError, FilterError: there is no such store, or an option is not valid for it.
        """
        with self.using(name) as store:
            found = store.search(query, how.k, how.where, mode=how.mode)
        return [Hit(self.shown(name, hit.document), hit.score) for hit in found]

    def add(self, name: str, documents: list[Document], stale: Mapping[str, object] | None = None) -> list[str]:
        """Add documents, or replace those with the same ids, and return the ids.

        Args:
            name: of the store.
            documents: to add.
            stale: a filter; what it matches and is not added is deleted.

        Raises:
            ApiError: 404; 403 for a store that is only to be read; 413 if there is no room.
        """
        with self._changing, self.using(name) as store:
            if name in self._shared:
                raise StoreReadOnlyError
            given = {document.id for document in documents}
            count = len(store) + len(given) - len(store.get(list(given)))
            if count > (most := self._settings.max_passages):
                raise _full(f"a store may have {most} passages, and would have {count}")
            size = sum(map(_bytes, documents))
            size += sum(self._size(own) for own in self._own())
            if size > (most := self._settings.store_bytes):
                raise _full(f"a tenant's stores may have {most} bytes, and would have {size}")
            ids = store.add(documents)
            if stale is not None:
                store.delete(where={"$and": [stale, {"$not": {"$id": ids}}]})
            return ids

    def delete(self, name: str) -> None:
        """Delete a store with its files.

        Raises:
            ApiError: 404; 403 for a store that is only to be read.
        """
        with self._changing, self._lock:
            if name in self._shared:
                raise _read_only(name)
            if name not in self._own():
                self.get(name)  # raises
            if (store := self._open.pop(name, None)) is not None:
                store.close()
            if (path := self._path(name)) is not None:
                withdraw(path)

    def close(self) -> None:
        """Close the tenant's stores, so that opening them again is fast."""
        with self._changing, self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def _own(self) -> set[str]:
        if self._folder is None or not self._folder.is_dir():
            return set(self._open)
        return {path.name for path in self._folder.iterdir() if _NAME.fullmatch(path.name) and _is_store(path)}

    def _path(self, name: str) -> Path | None:
        return None if self._folder is None else self._folder / name

    def _size(self, name: str) -> int:
        """Bytes of its files, or without files of its documents."""
        if name in self._shared:
            return 0
        if (path := self._path(name)) is None:
            return sum(map(_bytes, self.get(name)))
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def open_store(path: Path, embedder: Embedder | None, *, read_only: bool = False) -> VectorStore:
    """Open a store with the server's embedder, if it was built with that, or else with its own.

    Raises:
        StoreError: there is none, it is damaged, or another process writes to it.
    """
    try:
        return VectorStore.open(path, embedder, read_only=read_only)
    except EmbedderMismatchError:
        return VectorStore.open(path, read_only=read_only)


def _bytes(document: Document) -> int:
    """Bytes of a document's text and metadata."""
    return len(document.text.encode("utf-8", "replace")) + len(json.dumps(dict(document.metadata)))


def _is_store(path: Path) -> bool:
    return (path / FILE_NAME).is_file()


@contextmanager
def _store_errors(name: str) -> Iterator[None]:
    """Tell clients of a store's exceptions without naming the server's files."""
    try:
        yield
    except StoreReadOnlyError as error:
        raise _read_only(name) from error
    except StoreLockedError as error:
        raise ApiError(
            409, f"another program writes to the store {name!r}; try again when it has ended", code="store_locked"
        ) from error
    except (FilterError, SettingsError, ApiError):
        raise
    except StoreError as error:
        _log.error("a store failed", extra={"facts": {"store": name, "reason": type(error).__name__}})
        raise ApiError(
            500,
            f"the store {name!r} cannot be used; the reason was logged",
            type="server_error",
            code="store_failed",
        ) from error


def _read_only(name: str) -> ApiError:
    return ApiError(
        403,
        f"the store {name!r} is the operator's and only to be read; make one of your own",
        type="permission_error",
        code="store_read_only",
    )


def _full(said: str) -> ApiError:
    return ApiError(413, f"{said}; delete some", param="documents", code="store_full")
