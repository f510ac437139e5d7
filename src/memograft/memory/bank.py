"""`Bank`: keeps memories by a hash of their content, so that a context is memorized only once.

    <folder>/<id>/              a memory written by `MemoryHandle.save` (a PEFT LoRA folder and memograft.json; only
                                memograft.json if it was rolled back), or keys and values written by `prefix_folder`
    <folder>/<id>.pin           exists while the entry is pinned: `gc` does not remove it

An entry's id is a hash of model, settings and context, so an entry never changes. The modification time of its folder
is the time of its last use. Entries are written atomically, under a lock that ends with its process, so several
processes can share a folder. A damaged entry is removed with a warning and made again.
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
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from memograft.errors import MemoryFormatError, SettingsError
from memograft.memory import prefix_folder
from memograft.memory.prefix_folder import ABOUT as PREFIX
from memograft.memory.prefixes import Place, Prefixes
from memograft.storage.disk import told
from memograft.storage.locks import made_anew_in_forks
from memograft.storage.publish import clear_up, published, withdraw

if TYPE_CHECKING:
    from memograft.memory.base import Model
    from memograft.memory.handle import MemoryHandle
    from memograft.model.backbone import Backbone
    from memograft.model.kv import Piece

__all__ = ["Bank", "Entry", "Statistics", "as_bank", "check_bank", "place_of"]

T = TypeVar("T")

_PIN = ".pin"


@dataclass(frozen=True)
class Entry:
    """One entry of a bank's folder: a memory, or the keys and values of a document.

    Attributes:
        id: its id.
        kind: "memory" or "prefix".
        path: its folder.
        size: bytes on disk.
        used: time of its last use, in seconds since 1970.
        pinned: whether it is protected from `gc`.
    """

    id: str
    kind: str
    path: Path
    size: int
    used: float
    pinned: bool


@dataclass(frozen=True)
class Statistics:
    """Counts of a bank since it was created.

    Attributes:
        hits: memories found, in memory or on disk.
        misses: memories that were not found.
        damaged: damaged entries that were removed.
        held: number of memories in memory.
        held_bytes: their size.
        prefix_tokens: prompt tokens whose keys and values were found.
        prefix_bytes: size of the keys and values in memory.
    """

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    held: int = 0
    held_bytes: int = 0
    prefix_tokens: int = 0
    prefix_bytes: int = 0


class Bank:
    """Keeps memories by their content, in memory and optionally in a folder.

    Args:
        folder: created if it does not exist; None keeps everything in memory.
        max_bytes: size limit of the folder. Least recently used entries go first, pinned ones never. None: no limit.
        memory_bytes: size limit of the memories kept in memory, on the model's device.
        prefix_bytes: size limit of the documents' keys and values in memory. Later prompts that begin with the same
            documents skip their prefill, with or without a memory. 0 keeps none.
        prefix_files: whether keys and values are also written to the folder, for use after a restart: None (no),
            "exact" (in the model's dtype: 2 bytes a number in bfloat16) or "int8" (a bit more than half of that;
            answers after a restart may differ). They count towards `max_bytes`.

    Raises:
        SettingsError: a limit is not a positive number of bytes, or `prefix_files` is invalid or has no folder.
        MemoryFormatError: the folder cannot be created.

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
        prefix_files: Literal["exact", "int8"] | None = None,
    ) -> None:
        for name, value in {"max_bytes": max_bytes, "memory_bytes": memory_bytes}.items():
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise SettingsError(f"`{name}` must be a positive number of bytes, got {value!r}")
        if not isinstance(prefix_bytes, int) or isinstance(prefix_bytes, bool) or prefix_bytes < 0:
            raise SettingsError(f"`prefix_bytes` must be a number of bytes, or 0 to hold none, got {prefix_bytes!r}")
        if prefix_files not in (None, "exact", "int8"):
            raise SettingsError(f'`prefix_files` must be None, "exact" or "int8", got {prefix_files!r}')
        if prefix_files is not None and folder is None:
            raise SettingsError(f"`prefix_files` needs a folder, got {prefix_files!r} without; pass Bank(folder, ...)")
        self.prefixes = Prefixes(
            prefix_bytes, *((self._read_prefix, self._write_prefix, self._touch) if prefix_files else ())
        )
        self._int8 = prefix_files == "int8"
        self.folder = None if folder is None else Path(folder)
        self.max_bytes, self.memory_bytes = max_bytes, memory_bytes
        made_anew_in_forks(self._make_lock)
        self._held: OrderedDict[str, MemoryHandle] = OrderedDict()  # by last use, oldest first
        self._statistics = Statistics()
        if self.folder is not None:
            with told(self.folder, MemoryFormatError, "used as a bank's folder"):
                self.folder.mkdir(parents=True, exist_ok=True)
                clear_up(self.folder)

    def __repr__(self) -> str:
        return "Bank()" if self.folder is None else f"Bank({str(self.folder)!r})"

    @property
    def statistics(self) -> Statistics:
        """The counts so far."""
        with self._lock:
            held = sum(handle.nbytes for handle in self._held.values())
            now = replace(self._statistics, held=len(self._held), held_bytes=held)
        return replace(now, prefix_tokens=self.prefixes.tokens, prefix_bytes=self.prefixes.nbytes)

    def has(self, id: str) -> bool:
        """Whether there is an entry with that id: in the folder, or without one in process memory. Reads nothing."""
        return id in self._held if self.folder is None else (self.folder / id).exists()

    def get(self, id: str, backbone: Backbone) -> MemoryHandle | None:
        """The memory with that id, for this model; None if there is none or it was damaged."""
        with self._lock:
            found = self._held.get(id)
            if found is not None:
                self._held.move_to_end(id)
        if found is None and self.folder is not None:
            from memograft.memory.handle import MemoryHandle

            found = self._read(self.folder / id, lambda path: MemoryHandle.load(path, backbone))
            if found is not None:
                self._hold(found)
        if found is not None:
            self._touch(id)
        self._count(hits=found is not None, misses=found is None)
        return found

    def put(self, handle: MemoryHandle) -> None:
        """Keep a memory. One that was rolled back is kept too, so that it is not tried again.

        If the folder cannot be written, a warning is given and the memory is only kept in process memory.
        """
        self._hold(handle)
        self._write(handle.id, handle.keep)

    def entries(self) -> list[Entry]:
        """The entries of the folder, most recently used first."""
        return sorted(self._entries(), key=lambda entry: (-entry.used, entry.id))

    def pin(self, id: str) -> None:
        """Protect an entry from `gc`.

        Raises:
            MemoryFormatError: there is no such entry.
        """
        entry = self.entry(id)
        entry.path.with_name(entry.id + _PIN).touch()

    def unpin(self, id: str) -> None:
        """Allow `gc` to remove an entry again."""
        entry = self.entry(id)
        entry.path.with_name(entry.id + _PIN).unlink(missing_ok=True)

    def entry(self, id: str) -> Entry:
        """The entry whose id begins with `id`.

        Raises:
            MemoryFormatError: there is none, or more than one.
        """
        found = [entry for entry in self._entries() if id and entry.id.startswith(id)]
        found = [entry for entry in found if entry.id == id] or found
        if len(found) != 1:
            many = f"{len(found)} of them" if found else "none"
            raise MemoryFormatError(f"`id` must name one memory of {self.folder}, got {id!r}, which matches {many}")
        return found[0]

    def remove(self, id: str) -> None:
        """Remove an entry, even if it is pinned.

        Raises:
            MemoryFormatError: there is no such entry.
        """
        entry = self.entry(id)
        self._drop(entry.path)

    def export(self, id: str, file: str | Path) -> Entry:
        """Write a memory to a zip file that `take` can read.

        Raises:
            MemoryFormatError: there is no memory with that id, or the file cannot be written.
        """
        from memograft.memory.folder import ABOUT, about

        entry, file = self.entry(id), Path(file)
        if entry.kind != "memory":
            raise MemoryFormatError(f"`export` writes memories, but {entry.id} is a prefix; models make it again")
        draft = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
        with told(file, MemoryFormatError, "written"):
            try:
                with zipfile.ZipFile(draft, "w") as archive:
                    for name in about(entry.path)["files"] | {ABOUT: ""}:
                        archive.write(entry.path / name, name)
                draft.replace(file)
            finally:
                draft.unlink(missing_ok=True)
        return entry

    def take(self, path: str | Path) -> Entry:
        """Add a memory from a zip file of `export` or a folder of `MemoryHandle.save`, unless it is already there.

        Raises:
            MemoryFormatError: it is not a memory or is damaged, or this bank has no folder.
        """
        from memograft.memory.folder import ABOUT, about, inspected, unpack

        path = Path(path)
        if self.folder is None:
            raise MemoryFormatError("a bank that takes memories needs a folder, got none; make it with Bank(folder)")
        with told(path, MemoryFormatError, "read"), tempfile.TemporaryDirectory() as unpacked:
            source = Path(unpacked) if path.is_file() else path
            if path.is_file():
                unpack(path, source)
            if damaged := inspected(source).damaged:
                raise MemoryFormatError("\n".join(damaged.values()))
            id = str(about(source)["id"])
            if not re.fullmatch(r"[0-9a-f]{32}", id):  # it becomes the name of a folder
                raise MemoryFormatError(f"{path} must hold a memory with an id of 32 hex digits, got {id!r}")
            if not (self.folder / id).exists():
                with published(self.folder / id) as draft:
                    for name in about(source)["files"] | {ABOUT: ""}:
                        shutil.copyfile(source / name, draft / name)
        return self.entry(id)

    def gc(self, max_bytes: int | None = None) -> list[Entry]:
        """Remove least recently used entries until the folder has at most `max_bytes`, and return them.

        `max_bytes` defaults to the bank's limit. Pinned entries stay, even if they exceed the limit.
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
                self._drop(entry.path)
                removed.append(entry)
                total -= entry.size
        return removed

    def _make_lock(self) -> None:
        self._lock = threading.Lock()

    def _entries(self) -> Iterator[Entry]:
        for path in self.folder.iterdir() if self.folder is not None else ():
            if path.name.startswith("."):  # an unfinished entry
                continue
            try:
                size = sum(file.stat().st_size for file in path.iterdir())
                used = path.stat().st_mtime
            except OSError:  # not a folder, or removed by another process
                continue
            kind = "prefix" if (path / PREFIX).exists() else "memory"
            yield Entry(path.name, kind, path, size, used, path.with_name(path.name + _PIN).exists())

    def _drop(self, path: Path) -> None:
        with self._lock:
            self._held.pop(path.name, None)
        withdraw(path)
        path.with_name(path.name + _PIN).unlink(missing_ok=True)

    def _read(self, path: Path, read: Callable[[Path], T]) -> T | None:
        """Read an entry with `read`; remove it if it is damaged."""
        if not path.exists():
            return None
        try:
            return read(path)
        except MemoryFormatError as e:
            if not path.exists():  # another process has removed it
                return None
            warnings.warn(f"{e} (the bank has removed it, and it is made anew)", stacklevel=2)
            self._count(damaged=True)
            self._drop(path)
            return None

    def _read_prefix(self, model: Model, place: Place) -> Piece | None:
        if self.folder is None or not (path := self.folder / place.id).exists():
            return None
        backbone = model.backbone
        if len({weight.device for weight in backbone.model.parameters()}) > 1:
            return None  # the devices of a split model's layers are not recorded
        return self._read(path, partial(prefix_folder.read, device=backbone.device, dtype=backbone.model.dtype))

    def _write_prefix(self, model: Model, place: Place, piece: Piece) -> None:
        def write(path: Path) -> None:
            prefix_folder.write(path, piece, place, model.fingerprint, int8=self._int8)

        self._write(place.id, write)

    def _write(self, id: str, write: Callable[[Path], object]) -> None:
        """Write an entry, if there is a folder and the id is new."""
        if self.folder is None:
            return
        path = self.folder / id
        try:
            if not path.exists():
                write(path)
                self.gc()
        except (OSError, MemoryFormatError) as e:
            warnings.warn(f"{id} could not be kept in {self.folder}: {e}", stacklevel=3)

    def _touch(self, id: str) -> None:
        if self.folder is not None:
            with suppress(OSError):  # another process may have removed it meanwhile
                os.utime(self.folder / id)

    def _hold(self, handle: MemoryHandle) -> None:
        with self._lock:
            self._held[handle.id] = handle
            self._held.move_to_end(handle.id)
            total = sum(held.nbytes for held in self._held.values())
            while total > self.memory_bytes and self._held:
                total -= self._held.popitem(last=False)[1].nbytes

    def _count(self, *, hits: bool = False, misses: bool = False, damaged: bool = False) -> None:
        with self._lock:
            now = self._statistics
            self._statistics = Statistics(now.hits + hits, now.misses + misses, now.damaged + damaged)


def as_bank(bank: Bank | str | Path | None) -> Bank | None:
    """Return a bank as it is, or make the bank of a folder.

    Raises:
        SettingsError: it is neither.
    """
    check_bank(bank)
    return bank if bank is None or isinstance(bank, Bank) else Bank(bank)


def check_bank(bank: object) -> None:
    """Check that a value can be used as a bank, without creating one.

    Raises:
        SettingsError: it is not a bank, a folder or None. "" is refused, because it would be the working directory.
    """
    if bank is not None and (not isinstance(bank, Bank | str | Path) or bank == ""):
        raise SettingsError(f"`bank` must be a folder, a memograft.Bank, or None, got {bank!r}; leave it out for none")


def place_of(bank: Bank | str | Path | None) -> str | None:
    """A bank's folder as text, for other processes, which cannot share the object. None without a folder."""
    folder = bank.folder if isinstance(bank, Bank) else bank
    return None if folder is None else str(folder)
