"""`Shelf`: the memories of a tenant, which its clients made by POST /v1/memories and name by their ids.

    <folder>/<id>/        a memory as `MemoryHandle.keep` writes it
    <folder>/<id>.pin     exists while it is pinned

Without a folder they are in process memory only. Several processes may have shelves in one folder: each looks there for
what others made, pinned or removed. An id is a hash of model, documents and settings with the tenant's
secret, so that nobody else can compute it, and the same documents are not memorized twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from memograft.documents import Document
from memograft.errors import MemoryFormatError
from memograft.memory.base import Memory
from memograft.memory.folder import about
from memograft.memory.handle import MemoryHandle
from memograft.memory.report import MemoryReport
from memograft.server.errors import ApiError
from memograft.server.settings import ServerSettings
from memograft.storage.publish import clear_up, withdraw

__all__ = ["Shelf", "Shelved"]

_log = logging.getLogger("memograft.server")
_PREFIX = "mem_"


@dataclass(frozen=True)
class Shelved:
    """What is known about a memory without reading its weights.

    Attributes:
        id: its id.
        settings: as JSON values, with the kind.
        documents: ids of its documents.
        report: what memorizing did.
        size: bytes in process memory, or in its folder.
        created: seconds since 1970.
        pinned: whether it stays when there is no room for others.
    """

    id: str
    settings: dict[str, object]
    documents: tuple[str, ...]
    report: MemoryReport
    size: int
    created: float
    pinned: bool = False

    def to_json(self) -> dict[str, object]:
        """The memory in responses."""
        report = self.report
        told = {
            "memorized": [] if report.rolled_back or report.reason is not None else list(report.documents),
            "steps": report.steps,
            "loss_before": _number(report.loss_before),
            "loss_after": _number(report.loss_after),
            "kl": _number(report.kl),
            "rolled_back": report.rolled_back,
            "reason": report.reason,
            "warnings": list(report.warnings),
            "seconds": report.seconds,
        }
        return {
            "id": self.id,
            "object": "memory",
            "created": int(self.created),
            "kind": self.settings["kind"],
            "documents": list(self.documents),
            "bytes": self.size,
            "pinned": self.pinned,
            "settings": self.settings,
            "report": told,
        }


class Shelf:
    """Memories by their ids. When there is no room for a new one, the least recently used are removed, pinned ones not.

    Methods may be called from any thread. A handle that was given out stays valid when its memory is removed.

    Args:
        load: reads a memory's folder; it is called on no event loop.
        fingerprint: of the model.
        settings: the limits.
        secret: of the tenant.
        folder: None keeps the memories in process memory only.
    """

    def __init__(
        self,
        load: Callable[[Path], MemoryHandle],
        fingerprint: str,
        settings: ServerSettings,
        secret: bytes,
        folder: Path | None = None,
    ) -> None:
        self._load, self._fingerprint, self._secret, self._folder = load, fingerprint, secret, folder
        self._most, self._bytes = settings.max_memories, settings.memory_bytes
        self._lock = threading.RLock()
        self._known: OrderedDict[str, Shelved] = OrderedDict()  # by last use, oldest first
        self._held: OrderedDict[str, MemoryHandle] = OrderedDict()  # of these, those in process memory
        self._unread: set[tuple[str, int]] = set()  # names and inodes of folders that are none of ours
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            clear_up(folder)
            self._refresh()

    def id_of(self, documents: Sequence[Document], memory: Memory) -> str:
        """The id of a memory of these documents."""
        what = [self._fingerprint, memory.to_json(), [[d.id, d.text, dict(d.metadata)] for d in documents]]
        text = json.dumps(what, sort_keys=True).encode()
        return _PREFIX + hashlib.blake2b(text, key=self._secret, digest_size=16).hexdigest()

    def all(self) -> list[Shelved]:
        """All of them, newest first."""
        with self._lock:
            self._refresh()
            return sorted(self._known.values(), key=lambda each: (-each.created, each.id))

    def get(self, id: str) -> Shelved:
        """What is known about a memory.

        Raises:
            ApiError: 404.
        """
        with self._lock:
            if self._folder is not None and not (id in self._known and (self._folder / id).is_dir()):
                self._refresh()  # another process may have made or removed it
            found = self._known.get(id)
        if found is None:
            raise ApiError(
                404,
                f"there is no memory {id!r:.80}; GET /v1/memories lists yours, and POST /v1/memories makes one",
                param="memory",
                code="memory_not_found",
            )
        return found

    def handle(self, id: str) -> MemoryHandle:
        """A memory for a request; it is read from its folder if it is not in process memory.

        Raises:
            ApiError: 404.
        """
        with self._lock:
            self.get(id)
            held = self._held.get(id)
        if held is None:
            assert self._folder is not None
            try:
                held = self._load(self._folder / id)
            except MemoryFormatError as error:
                if (self._folder / id).exists():
                    _log.error("a damaged memory was removed", extra={"facts": {"id": id, "reason": str(error)}})
                self.remove(id)
                held = self.handle(id)  # raises
        with self._lock:
            if id in self._known:  # not removed meanwhile
                self._hold(id, held)
        if self._folder is not None:
            with suppress(OSError):
                os.utime(self._folder / id)
        return held

    def check_room(self) -> None:
        """Refuse a new memory before it is made, if all that could make room are pinned.

        Raises:
            ApiError: 409.
        """
        with self._lock:
            self._refresh()
            pinned = [each for each in self._known.values() if each.pinned]
        size = sum(each.size for each in pinned)
        if len(pinned) >= self._most or size >= self._bytes:
            raise ApiError(
                409,
                f"a tenant may have {self._most} memories and {self._bytes} bytes of them, and {len(pinned)} with "
                f"{size} bytes are pinned; unpin or delete one",
                code="memories_full",
            )

    def put(self, id: str, handle: MemoryHandle, *, pinned: bool = False) -> Shelved:
        """Keep a new memory, and remove others if there is no room.

        Raises:
            ApiError: 413 if it is too large, and 409 if there is no room beside the pinned ones.
        """
        size = _in_memory(handle)
        if self._folder is not None:
            handle.keep(self._folder / id)
            size = _bytes_of(self._folder / id)
        made = Shelved(
            id, handle.settings.to_json(), tuple(d.id for d in handle.documents), handle.report, size, time.time()
        )
        with self._lock:
            self._refresh()
            self._known.pop(id, None)  # it is on disk already, and counted by `size`
            try:
                self._make_room(size)
            except ApiError:
                if self._folder is not None:
                    withdraw(self._folder / id)
                raise
            self._known[id] = made
            self._hold(id, handle)
        return self.pin(id, pinned=True) if pinned else made

    def pin(self, id: str, *, pinned: bool) -> Shelved:
        """Keep a memory when there is no room for others, or no longer.

        Raises:
            ApiError: 404.
        """
        with self._lock:
            self._known[id] = changed = replace(self.get(id), pinned=pinned)
            if self._folder is not None:
                if pinned:
                    self._pin_of(id).touch()
                else:
                    self._pin_of(id).unlink(missing_ok=True)
        return changed

    def remove(self, id: str) -> None:
        """Remove a memory, even if it is pinned.

        Raises:
            ApiError: 404.
        """
        with self._lock:
            self.get(id)
            del self._known[id]
            self._held.pop(id, None)
            if self._folder is not None:
                self._pin_of(id).unlink(missing_ok=True)
                withdraw(self._folder / id)

    def _make_room(self, size: int) -> None:
        if size > self._bytes:
            raise ApiError(
                413,
                f"a tenant's memories may have {self._bytes} bytes, and this one has {size}; memorize fewer documents, "
                'or choose {"kind": "compacted"}',
                param="documents",
                code="memory_too_large",
            )
        while len(self._known) >= self._most or sum(e.size for e in self._known.values()) + size > self._bytes:
            oldest = next((each.id for each in self._known.values() if not each.pinned), None)
            if oldest is None:
                raise ApiError(
                    409,
                    f"a memory of {size} bytes has no room beside the pinned ones: a tenant may have {self._most} "
                    f"memories and {self._bytes} bytes; unpin or delete one",
                    code="memories_full",
                )
            self.remove(oldest)

    def _hold(self, id: str, handle: MemoryHandle) -> None:
        """Note a use, and with a folder keep only those last used in process memory."""
        self._known.move_to_end(id)
        self._held[id] = handle
        self._held.move_to_end(id)
        total = sum(map(_in_memory, self._held.values()))
        while self._folder is not None and total > self._bytes and len(self._held) > 1:
            total -= _in_memory(self._held.popitem(last=False)[1])

    def _pin_of(self, id: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{id}.pin"

    def _refresh(self) -> None:
        """Take over what other processes changed in the folder. The order of use is that of the folders' times."""
        if self._folder is None:
            return
        known, self._known = self._known, OrderedDict()
        for path, inode in self._on_disk():
            each = known.get(path.name)
            if each is None and (path.name, inode) not in self._unread:
                each = self._read(path)
                if each is None:
                    self._unread.add((path.name, inode))
            if each is not None:
                self._known[path.name] = replace(each, pinned=self._pin_of(path.name).exists())
        for id in self._held.keys() - self._known.keys():
            del self._held[id]

    def _on_disk(self) -> list[tuple[Path, int]]:
        """The folders of memories with their inodes, least recently used first."""
        assert self._folder is not None
        found = list[tuple[float, Path, int]]()
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if path.name.startswith(_PREFIX):
                with suppress(OSError):  # removed meanwhile
                    status = path.stat()
                    found += [(status.st_mtime, path, status.st_ino)] if path.is_dir() else []
        return [(path, inode) for _, path, inode in sorted(found)]

    def _read(self, path: Path) -> Shelved | None:
        """What a folder says about its memory. None, and it stays there, if it is damaged or of another model."""
        try:
            told = about(path)
            if told["fingerprint"] != self._fingerprint:
                return None
            return Shelved(
                path.name,
                told["settings"],
                tuple(document["id"] for document in told["documents"]),
                MemoryReport(**told["report"]),
                _bytes_of(path),
                (path / "memograft.json").stat().st_mtime,
            )
        except (MemoryFormatError, OSError, KeyError, TypeError) as error:
            _log.error("a memory was not read", extra={"facts": {"id": path.name, "reason": type(error).__name__}})
            return None


def _in_memory(handle: MemoryHandle) -> int:
    return handle.nbytes + (handle.segment.nbytes if handle.segment is not None else 0)


def _bytes_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
