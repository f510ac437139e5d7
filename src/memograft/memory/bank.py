"""`Bank`: memories kept by what decides them, so that a context that comes again is not memorized again.

    <folder>/<id>/              a memory as `MemoryHandle.save` writes it: a PEFT LoRA folder and memograft.json
    <folder>/<id>.pin           there while `gc` must leave that entry alone

An entry's id is a hash of model, settings and context, so that an entry is never changed and its age is all there is to
know: the time of its last use is the modification time of its folder. Each entry is published in one step, under a lock
that dies with its process; several processes may share a folder. What is damaged is removed, said, and made anew.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import uuid
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memograft.errors import MemoryFormatError, SettingsError
from memograft.memory.prefixes import Prefixes
from memograft.storage.disk import told
from memograft.storage.locks import made_anew_in_forks
from memograft.storage.publish import clear_up, published, withdraw

if TYPE_CHECKING:
    from memograft.memory.handle import MemoryHandle
    from memograft.model.backbone import Backbone

__all__ = ["Bank", "Entry", "Statistics", "as_bank"]

_PIN = ".pin"


@dataclass(frozen=True)
class Entry:
    """One memory of a bank's folder.

    Attributes:
        id: its id.
        path: its folder.
        size: bytes on the disk.
        used: when it was last used, in seconds since 1970.
        pinned: whether `gc` leaves it alone.
    """

    id: str
    path: Path
    size: int
    used: float
    pinned: bool


@dataclass(frozen=True)
class Statistics:
    """What a bank was asked for since it was made.

    Attributes:
        hits: memories found, whether in memory or on the disk.
        misses: memories that had to be made.
        damaged: entries that were removed because they were not what was written.
        held: memories in memory.
        held_bytes: their size.
    """

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    held: int = 0
    held_bytes: int = 0


class Bank:
    """Keeps memories by their content, in memory and, with a folder, on the disk.

    Args:
        folder: made if it is not there; None keeps everything in memory.
        max_bytes: of the folder; the memories that were not used for longest go first, pinned ones never. None is
            without bound.
        memory_bytes: the same of what is held in memory, where the model's device has it.
        prefix_bytes: the same of documents' keys and values, which spare later prompts with the same documents in front
            their prefill, under every memory and under none; held in memory only. 0 holds none.

    Raises:
        SettingsError: a bound is not a positive number of bytes.
        MemoryFormatError: the folder cannot be made.

    Example:
        >>> bank = Bank()
        >>> bank.statistics.hits
        0
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        max_bytes: int | None = None,
        memory_bytes: int = 1 << 30,
        prefix_bytes: int = 1 << 30,
    ) -> None:
        for name, value in {"max_bytes": max_bytes, "memory_bytes": memory_bytes}.items():
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise SettingsError(f"`{name}` must be a positive number of bytes, got {value!r}")
        if not isinstance(prefix_bytes, int) or isinstance(prefix_bytes, bool) or prefix_bytes < 0:
            raise SettingsError(f"`prefix_bytes` must be a number of bytes, or 0 to hold none, got {prefix_bytes!r}")
        self.prefixes = Prefixes(prefix_bytes)
        self.folder = None if folder is None else Path(folder)
        self.max_bytes, self.memory_bytes = max_bytes, memory_bytes
        made_anew_in_forks(self._make_lock)
        self._held: OrderedDict[str, MemoryHandle] = OrderedDict()  # by last use, oldest first
        self._statistics = Statistics()
        if self.folder is not None:
            with told(self.folder, MemoryFormatError, "used as a bank's folder"):
                self.folder.mkdir(parents=True, exist_ok=True)
                clear_up(self.folder)

    @property
    def statistics(self) -> Statistics:
        """What it was asked for so far."""
        with self._lock:
            held = sum(handle.nbytes for handle in self._held.values())
            return replace(self._statistics, held=len(self._held), held_bytes=held)

    def get(self, id: str, backbone: Backbone) -> MemoryHandle | None:
        """The memory of that id, for this model; None where there is none, or where it was damaged."""
        with self._lock:
            found = self._held.get(id)
            if found is not None:
                self._held.move_to_end(id)
        if found is None and self.folder is not None:
            found = self._read(self.folder / id, backbone)
            if found is not None:
                self._hold(found)
        if found is not None and self.folder is not None:
            with suppress(OSError):  # another process may have removed it meanwhile
                os.utime(self.folder / id)
        self._count(hits=found is not None, misses=found is None)
        return found

    def put(self, handle: MemoryHandle) -> None:
        """Keep a memory; one without weights (nothing to memorize, or rolled back) only in memory.

        A folder that cannot be written to costs the entry, with a warning, and not the answer.
        """
        self._hold(handle)
        if self.folder is None or handle.adapter is None:
            return
        path = self.folder / handle.id
        try:
            if not path.exists():  # what has the same id is the same
                handle.save(path)
                self.gc()
        except (OSError, MemoryFormatError) as e:
            warnings.warn(f"memory {handle.id} could not be kept in {self.folder}: {e}", stacklevel=2)

    def entries(self) -> list[Entry]:
        """What the folder holds, most recently used first."""
        return sorted(self._entries(), key=lambda entry: (-entry.used, entry.id))

    def pin(self, id: str) -> None:
        """Keep `gc` away from an entry.

        Raises:
            MemoryFormatError: there is none of that id.
        """
        entry = self.entry(id)
        entry.path.with_name(entry.id + _PIN).touch()

    def unpin(self, id: str) -> None:
        """Let `gc` remove it again."""
        entry = self.entry(id)
        entry.path.with_name(entry.id + _PIN).unlink(missing_ok=True)

    def entry(self, id: str) -> Entry:
        """The entry whose id begins so.

        Raises:
            MemoryFormatError: there is none, or more than one.
        """
        found = [entry for entry in self._entries() if id and entry.id.startswith(id)]
        found = [entry for entry in found if entry.id == id] or found
        if len(found) != 1:
            many = f"{len(found)} of them" if found else "none"
            raise MemoryFormatError(f"`id` must name one memory of {self.folder}, got {id!r}, and there is {many}")
        return found[0]

    def remove(self, id: str) -> None:
        """Forget an entry, pinned or not.

        Raises:
            MemoryFormatError: there is none of that id.
        """
        entry = self.entry(id)
        self._drop(entry)

    def export(self, id: str, file: str | Path) -> Entry:
        """Write an entry to a zip file, which `take` reads.

        Raises:
            MemoryFormatError: there is none of that id, or the file cannot be written.
        """
        from memograft.memory.folder import FILES

        entry, file = self.entry(id), Path(file)
        draft = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
        with told(file, MemoryFormatError, "written"):
            try:
                with zipfile.ZipFile(draft, "w") as archive:
                    for name in FILES:
                        archive.write(entry.path / name, name)
                draft.replace(file)
            finally:
                draft.unlink(missing_ok=True)
        return entry

    def take(self, path: str | Path) -> Entry:
        """Keep a memory from a zip file of `export` or a folder of `MemoryHandle.save`; one that is there stays.

        Raises:
            MemoryFormatError: it is no memory, or damaged; or this bank has no folder.
        """
        from memograft.memory.folder import FILES, about, inspected, unpack

        path = Path(path)
        if self.folder is None:
            raise MemoryFormatError("a bank that takes memories needs a folder, got none; make it with Bank(folder)")
        with told(path, MemoryFormatError, "read"), tempfile.TemporaryDirectory() as unpacked:
            source = path
            if path.is_file():
                source = Path(unpacked)
                unpack(path, source)
            if damaged := inspected(source).damaged:
                raise MemoryFormatError("\n".join(damaged.values()))
            id = str(about(source)["id"])
            if not re.fullmatch(r"[0-9a-f]{32}", id):  # it becomes the name of a folder
                raise MemoryFormatError(f"{path} must hold a memory with an id of 32 hex digits, got {id!r}")
            if not (self.folder / id).exists():
                with published(self.folder / id) as draft:
                    for name in FILES:
                        shutil.copyfile(source / name, draft / name)
        return self.entry(id)

    def gc(self, max_bytes: int | None = None) -> list[Entry]:
        """Remove what was not used for longest until the folder holds `max_bytes` at most; returns what was removed.

        Left out, the bank's own bound. Pinned entries stay, even where they alone are more than that.
        """
        bound = self.max_bytes if max_bytes is None else max_bytes
        if bound is None:
            return []
        entries, removed = self.entries(), []
        total = sum(entry.size for entry in entries)
        for entry in reversed(entries):
            if total <= bound:
                break
            if not entry.pinned:
                self._drop(entry)
                removed.append(entry)
                total -= entry.size
        return removed

    def _make_lock(self) -> None:
        self._lock = threading.Lock()

    def _entries(self) -> Iterator[Entry]:
        for path in self.folder.iterdir() if self.folder is not None else ():
            if path.name.startswith("."):  # a draft
                continue
            try:
                size = sum(file.stat().st_size for file in path.iterdir())
                used = path.stat().st_mtime
            except OSError:  # no folder, or another process has removed it
                continue
            yield Entry(path.name, path, size, used, path.with_name(path.name + _PIN).exists())

    def _drop(self, entry: Entry) -> None:
        with self._lock:
            self._held.pop(entry.id, None)
        withdraw(entry.path)
        entry.path.with_name(entry.id + _PIN).unlink(missing_ok=True)

    def _read(self, path: Path, backbone: Backbone) -> MemoryHandle | None:
        from memograft.memory.handle import MemoryHandle

        if not path.exists():
            return None
        try:
            return MemoryHandle.load(path, backbone)
        except MemoryFormatError as e:
            if not path.exists():  # another process has removed it
                return None
            warnings.warn(f"{e} (the bank has removed it, and it is made anew)", stacklevel=2)
            self._count(damaged=True)
            self._drop(Entry(path.name, path, 0, 0.0, pinned=False))
            return None

    def _hold(self, handle: MemoryHandle) -> None:
        with self._lock:
            self._held[handle.id] = handle
            self._held.move_to_end(handle.id)
            total = sum(held.nbytes for held in self._held.values())
            while total > self.memory_bytes and self._held:
                _, gone = self._held.popitem(last=False)
                total -= gone.nbytes

    def _count(self, *, hits: bool = False, misses: bool = False, damaged: bool = False) -> None:
        with self._lock:
            now = self._statistics
            self._statistics = Statistics(now.hits + hits, now.misses + misses, now.damaged + damaged)


def as_bank(bank: Bank | str | Path | None) -> Bank | None:
    """A bank, or the one of a folder."""
    return bank if bank is None or isinstance(bank, Bank) else Bank(bank)
