"""The tenants of a server: each holder of a key has memories, stores, and a bank of its own.

    <bank>/<tenant>/secret        32 random bytes, with which the ids of memories are made
    <bank>/<tenant>/memories/     see `Shelf`
    <bank>/<tenant>/bank/         a `Bank`: what its requests memorized, for later ones with the same documents
    <stores>/<tenant>/<name>/     see `StoreRoom`

Nothing of one tenant is looked up for another one, so neither an answer nor its time tells what others have. A server
without keys has one tenant. A tenant is named after its key; a new key with an old name has the old tenant.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from starlette.requests import Request as HttpRequest

from memograft.engine import Engine
from memograft.errors import MemoryFormatError, SettingsError
from memograft.memory.bank import Bank
from memograft.passages.embedders import Embedder
from memograft.passages.vector_store import VectorStore
from memograft.server.errors import ApiError
from memograft.server.journal import facts_of
from memograft.server.rooms import StoreRoom, open_store
from memograft.server.settings import ServerSettings
from memograft.server.shelf import Shelf
from memograft.storage.disk import told

__all__ = ["Tenant", "Tenants"]

_log = logging.getLogger("memograft.server")
_NOBODY = "all"  # the folder of the tenant of a server without keys
_AT_ONCE = 4  # memories that wait for the engine


@dataclass(frozen=True)
class Tenant:
    """What belongs to the holder of a key.

    Attributes:
        memories: made by POST /v1/memories.
        stores: its stores.
        bank: of its requests; None: the engine's, if it has one.
    """

    memories: Shelf
    stores: StoreRoom
    bank: Bank | None


class Tenants:
    """The tenants of a server, which are made when they come. Close it after the server.

    Args:
        engine: of the server.
        settings: the limits.
        bank: folder for memories; None keeps them in process memory, and nothing else for later requests.
        stores: folder for stores; None keeps them in process memory.
        shared: folders of stores that all tenants may read.
        embedder: of new stores; None: they are searched by words only.

    Raises:
        SettingsError: a folder cannot be made, or two shared stores have the same name.
        StoreError: a shared store cannot be opened.
    """

    def __init__(
        self,
        engine: Engine,
        settings: ServerSettings,
        *,
        bank: str | Path | None = None,
        stores: str | Path | None = None,
        shared: Iterable[str | Path] = (),
        embedder: Embedder | None = None,
    ) -> None:
        self._engine, self._settings, self._embedder = engine, settings, embedder
        self._bank = None if bank is None else Path(bank)
        self._stores = None if stores is None else Path(stores)
        for folder in (self._bank, self._stores):
            if folder is not None:
                with told(folder, SettingsError, "used as a folder of tenants"):
                    folder.mkdir(parents=True, exist_ok=True)
        self._tenants: dict[str, Tenant] = {}
        self._shared: dict[str, VectorStore] = {}
        self.workers = ThreadPoolExecutor(_AT_ONCE, "memorize")
        for path in map(Path, shared):
            if (name := path.resolve().name) in self._shared:
                raise SettingsError(f"two stores are named {name!r}, the second is {path}; rename its folder")
            self._shared[name] = open_store(path, embedder, read_only=True)

    def of(self, http: HttpRequest) -> Tenant:
        """The tenant of a request, by the name of its key.

        Raises:
            ApiError: 500 if a folder cannot be used.
        """
        name = facts_of(http.scope).key
        if name not in self._tenants:
            try:
                self._tenants[name] = self._made(name)
            except (MemoryFormatError, OSError) as error:
                _log.error("a tenant's folder cannot be used", extra={"facts": {"key": name, "reason": str(error)}})
                raise ApiError(
                    500,
                    "the folder of this key's memories and stores cannot be used; the reason was logged",
                    type="server_error",
                    code="tenant_failed",
                ) from error
        return self._tenants[name]

    def close(self) -> None:
        """Close all stores."""
        self.workers.shutdown(wait=False, cancel_futures=True)
        for tenant in self._tenants.values():
            tenant.stores.close()
        for store in self._shared.values():
            store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _made(self, name: str) -> Tenant:
        place = _place(name)
        bank, secret, folder = None, secrets.token_bytes(32), None
        if self._bank is not None:
            home = self._bank / place
            folder = home / "memories"
            held = self._settings.cache_bytes
            bank = Bank(home / "bank", max_bytes=self._settings.memory_bytes, memory_bytes=held, prefix_bytes=held)
            secret = _secret(home / "secret")
        rooms = None if self._stores is None else self._stores / place
        return Tenant(
            Shelf(self._engine.load_memory, self._engine.fingerprint, self._settings, secret, folder),
            StoreRoom(self._settings, self._embedder, self._shared, rooms),
            bank,
        )


def _place(name: str) -> str:
    """The folder of a tenant. Names that differ only in case are different folders on all file systems."""
    return f"{name.lower()}-{hashlib.sha256(name.encode()).hexdigest()[:8]}" if name else _NOBODY


def _secret(file: Path) -> bytes:
    """The secret in a file, which is made if it does not exist; only its owner may read it."""
    with told(file, MemoryFormatError, "used"):
        if file.exists():
            return file.read_bytes()
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}-{secrets.token_hex(8)}")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(secrets.token_bytes(32))
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(draft, file)  # unless another process was first
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        return file.read_bytes()
