"""A datastore on disk: raw arrays that only grow, and one small header that says how much of them counts.

    header.json           what is true: replaced atomically, and only after the arrays are down on the disk
    keys-G.f32            (N, D) float32, hidden states       values-G.i32      (N,) int32, the tokens that followed
    sources-G.i32         (N,) int32, number of the source    positions-G.i32   (N,) int32, place in its answer
    sources.jsonl         a line per source, in the order of their numbers; numbers are never used twice
    index-*.faiss         see `reference/index.py`

G counts compactions. What lies beyond the header's counts was left by a crash: it is ignored, and overwritten by the
next writer. Little-endian, and nothing that runs code when it is read. Knows nothing of models, texts or FAISS.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memograft.errors import ModelMismatchError, StoreCorruptError, StoreError
from memograft.store.db import sync_folder

__all__ = ["HEADER", "Entries", "Files", "Header", "IndexKind", "Place", "read_header"]

IndexKind = Literal["flat", "hnsw", "ivfpq", "sq8"]
Place = Literal["ffn_input", "head_input"]

HEADER, SOURCES = "header.json", "sources.jsonl"
_FORMAT = 1
_ARRAYS: dict[str, tuple[str, Any]] = {
    "keys": ("f32", np.dtype("<f4")),
    "values": ("i32", np.dtype("<i4")),
    "sources": ("i32", np.dtype("<i4")),
    "positions": ("i32", np.dtype("<i4")),
}


class Entries(NamedTuple):
    """N entries: hidden states (N, D) float32, next tokens, source numbers and positions (N,) int32."""

    keys: NDArray[np.float32]
    values: NDArray[np.int32]
    sources: NDArray[np.int32]
    positions: NDArray[np.int32]


@dataclass(frozen=True)
class Header:
    """What counts of a datastore's files.

    Attributes:
        fingerprint: of the model whose hidden states the keys are.
        place: where in the model they were taken.
        dimension: D.
        index: the kind of index.
        entries: N, dead ones included.
        sources: lines of sources.jsonl.
        sources_bytes: its length.
        deleted: numbers of the sources that were deleted, ascending; their entries are dead.
        generation: compactions so far.
        calibration: what the datastore knows of its own distances; empty before it was calibrated.
        indexes: index files, by the number of heads they were made for.
        dtype: of the keys.
        format: of the folder.
    """

    fingerprint: str
    place: Place
    dimension: int
    index: IndexKind
    entries: int = 0
    sources: int = 0
    sources_bytes: int = 0
    deleted: tuple[int, ...] = ()
    generation: int = 0
    calibration: Mapping[str, Any] = field(default_factory=dict)
    indexes: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    format: int = _FORMAT


def read_header(folder: Path) -> Header | None:
    """What the folder's header says; None if there is no header, so no datastore yet.

    Raises:
        StoreCorruptError: it is damaged, or of another format.
        StoreError: it cannot be read.
    """
    file = folder / HEADER
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(file, error) from error
    except ValueError as error:
        raise _damaged(file, str(error)) from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        version = found.get("format") if isinstance(found, dict) else None
        raise _damaged(file, f"its format is {version!r} and this Memograft reads format {_FORMAT}")
    if set(found) != {f.name for f in fields(Header)}:
        raise _damaged(file, f"it holds the fields {sorted(found)}")
    counts = ("dimension", "entries", "sources", "sources_bytes", "generation")
    if any(type(found[name]) is not int or found[name] < 0 for name in counts) or found["dtype"] != "float32":
        raise _damaged(file, "a number in it is out of its range")
    return Header(**{**found, "deleted": tuple(found["deleted"])})


class Files:
    """The files of one datastore. One writer at a time; its owner locks.

    Args:
        folder: where they are; it exists.
        header: what counts of them.

    Raises:
        StoreCorruptError: a file is missing or shorter than the header says.
        StoreError: one cannot be read.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        self.folder, self.header = folder, header
        self._pending = self._whole = header  # with what was appended; the second in whole examples only
        if sys.byteorder != "little":
            raise StoreError("a datastore is little-endian, and this machine is not; use another machine")
        try:
            self.entries = self._map()
            self._check(SOURCES, header.sources_bytes)
        except OSError as error:
            raise _unreadable(folder, error) from error

    def append(self, entries: Entries) -> None:
        """Write entries behind those there are. Their source numbers count from the next source on.

        Neither they nor their sources count before the next `commit`.

        Raises:
            ModelMismatchError: keys of another width.
            StoreError: they cannot be written; what was appended since the last commit has to be appended again.
        """
        width = entries.keys.shape[1]
        now = replace(self._pending, dimension=self._pending.dimension or width)
        if width != now.dimension:
            raise ModelMismatchError(
                f"{self.folder} holds keys of D={now.dimension}, got keys of D={width}; use another folder"
            )
        entries = entries._replace(sources=entries.sources + now.sources)
        with self._writing():
            for (name, array), file in zip(entries._asdict().items(), self.names(now), strict=True):
                dtype = _ARRAYS[name][1]
                row = dtype.itemsize * (width if name == "keys" else 1)
                self._write(file, now.entries * row, array.astype(dtype).tobytes())
        self._pending = replace(now, entries=now.entries + len(entries.values))

    def forget(self) -> None:
        """Take back entries whose sources were not appended."""
        self._pending = self._whole

    def append_sources(self, lines: Sequence[str]) -> None:
        """Write the sources of the entries that were appended since the last ones; see `append`."""
        now, text = self._pending, "".join(f"{line}\n" for line in lines).encode()
        with self._writing():
            self._write(SOURCES, now.sources_bytes, text)
        self._pending = replace(now, sources=now.sources + len(lines), sources_bytes=now.sources_bytes + len(text))
        self._whole = self._pending

    def commit(self, **changes: Any) -> None:
        """Make what was appended count, and change these fields of the header; when it returns it is on the disk.

        Raises:
            StoreError: the disk is full, or worse. What was committed before is whole.
        """
        header = replace(self._pending, **changes)
        with self._writing():
            if header.entries:
                for name in (*self.names(header), SOURCES):
                    _sync(self.folder / name)
            draft = self.folder / f"{HEADER}.new"
            draft.write_text(json.dumps(asdict(header), indent=1), encoding="utf-8")
            _sync(draft)
            os.replace(draft, self.folder / HEADER)
            sync_folder(self.folder)
        remap = (header.entries, header.generation) != (self.header.entries, self.header.generation)
        self.header = self._pending = self._whole = header
        if remap:
            self.entries = self._map()

    def rewrite(self, alive: NDArray[np.bool_], rows: int = 65_536) -> int:
        """Copy the entries that are alive (N,) into files of the next generation; returns how many there are.

        They count once `commit(generation=..., entries=...)` says so.
        """
        names = self.names(replace(self.header, generation=self.header.generation + 1))
        with self._writing():
            for name, array in zip(names, self.entries, strict=True):
                with open(self.folder / name, "wb") as stream:
                    for start in range(0, len(alive), rows):
                        stream.write(array[start : start + rows][alive[start : start + rows]].tobytes())
        return int(alive.sum())

    def clean(self) -> None:
        """Remove what earlier generations, earlier indexes and crashes left."""
        kept = {HEADER, SOURCES, "writer.lock", *self.names(self.header)}
        kept |= {file["name"] for made in self.header.indexes.values() for file in made["files"]}
        patterns = ("*.new", "index-*.faiss", *(f"{name}-*.{suffix}" for name, (suffix, _) in _ARRAYS.items()))
        for file in (file for pattern in patterns for file in self.folder.glob(pattern)):
            if file.name not in kept:
                file.unlink(missing_ok=True)

    def source_bytes(self) -> bytes:
        """The lines of sources.jsonl that count."""
        if not self.header.sources_bytes:
            return b""
        try:
            with open(self.folder / SOURCES, "rb") as stream:
                return stream.read(self.header.sources_bytes)
        except OSError as error:
            raise _unreadable(self.folder / SOURCES, error) from error

    @staticmethod
    def names(header: Header) -> list[str]:
        """The files of the four arrays."""
        return [f"{name}-{header.generation}.{suffix}" for name, (suffix, _) in _ARRAYS.items()]

    def _write(self, name: str, offset: int, data: bytes) -> None:
        """Put `data` at `offset`, and end the file there."""
        file = self.folder / name
        with open(file, "r+b" if file.exists() else "w+b") as stream:
            stream.truncate(offset)
            stream.seek(offset)
            stream.write(data)

    def _map(self) -> Entries:
        arrays: list[Any] = []
        for name, (what, (_, dtype)) in zip(self.names(self.header), _ARRAYS.items(), strict=True):
            shape = (self.header.entries, self.header.dimension) if what == "keys" else (self.header.entries,)
            self._check(name, int(np.prod(shape)) * dtype.itemsize)
            empty = not np.prod(shape)
            arrays.append(np.zeros(shape, dtype) if empty else np.memmap(self.folder / name, dtype, "r", shape=shape))
        return Entries(*arrays)

    def _check(self, name: str, size: int) -> None:
        file = self.folder / name
        found = file.stat().st_size if file.exists() else 0
        if found < size:
            raise _damaged(file, f"it must have {size} bytes and has {found}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what the system says of writing into ours, and forget what was not committed."""
        try:
            yield
        except OSError as error:
            self._pending = self._whole = self.header
            raise StoreError(
                f"{self.folder} could not be written ({error}); its {self.header.entries} entries are safe, so free "
                "some space and repeat the call: it goes on where it was"
            ) from error


def _unreadable(file: Path, error: OSError) -> StoreError:
    return StoreError(f"{file} cannot be read ({error}); check its path and permissions")


def _damaged(file: Path, reason: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"{file} cannot be used as a datastore's: {reason}; restore the folder from a backup, or build the datastore "
        "anew in another"
    )


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
