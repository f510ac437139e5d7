"""A datastore on disk: raw arrays that are only appended to, and a small header with their valid lengths.

    header.json           lengths and checksums of all files; replaced atomically after the arrays were flushed to disk
    keys-G.f32            (N, D) float32, hidden states       values-G.i32      (N,) int32, the tokens that followed
    sources-G.i32         (N,) int32, number of the source    positions-G.i32   (N,) int32, place in its answer
    sources.jsonl         a line per source, in the order of their numbers, which are never reused
    index-*.faiss         see `rtd/index.py`

G counts compactions. Data beyond the header's lengths was left by a crash: it is ignored, and overwritten by the next
writer. Numbers are little-endian. Nothing in these files is executed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

import numpy as np
from numpy.typing import NDArray

from memograft.errors import ModelMismatchError, StoreCorruptError, StoreError
from memograft.rtd.told import Calibration, Changes, IndexFiles
from memograft.storage.disk import SEAL, is_sealed, sealed, sync, told

__all__ = [
    "HEADER",
    "SOURCES",
    "Entries",
    "Files",
    "Header",
    "IndexKind",
    "Place",
    "check_size",
    "counted",
    "damaged",
    "read_header",
]

IndexKind = Literal["flat", "hnsw", "ivfpq", "sq8"]
Place = Literal["ffn_input", "head_input"]

HEADER, SOURCES, _LINES = "header.json", "sources.jsonl", "lines"
_FORMAT = 1
_ARRAYS: dict[str, tuple[str, np.dtype[np.generic]]] = {
    "keys": ("f32", np.dtype("<f4")),
    "values": ("i32", np.dtype("<i4")),
    "sources": ("i32", np.dtype("<i4")),
    "positions": ("i32", np.dtype("<i4")),
}
_SMALL = ("values", "sources", "positions")  # 12 bytes per entry; a key has 4 D


class Entries(NamedTuple):
    """N entries: hidden states (N, D) float32, next tokens, source numbers and positions (N,) int32."""

    keys: NDArray[np.float32]
    values: NDArray[np.int32]
    sources: NDArray[np.int32]
    positions: NDArray[np.int32]


@dataclass(frozen=True)
class Header:
    """The valid state of a datastore's files.

    Attributes:
        fingerprint: of the model whose hidden states the keys are.
        place: where in the model they were taken.
        dimension: D.
        index: the kind of index.
        entries: N, including those of deleted sources.
        sources: lines of sources.jsonl.
        sources_bytes: its length.
        deleted: numbers of the deleted sources, ascending.
        generation: number of compactions.
        calibration: see `rtd/calibrate.py`; empty before the first calibration.
        indexes: index files, by number of heads.
        checksums: CRC-32 of the valid part of each array, and of sources.jsonl as "lines"; None in datastores made
            before there were any.
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
    calibration: Calibration = field(default_factory=Calibration)
    indexes: Mapping[str, IndexFiles] = field(default_factory=dict)
    checksums: Mapping[str, int] | None = field(default_factory=lambda: dict.fromkeys((*_ARRAYS, _LINES), 0))
    dtype: str = "float32"
    format: int = _FORMAT


def read_header(folder: Path) -> Header | None:
    """Read the folder's header; None if there is none, so no datastore yet.

    Raises:
        StoreCorruptError: it is damaged, or has another format.
        StoreError: it cannot be read.
    """
    file = folder / HEADER
    with told(file, StoreError, "read"):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, RecursionError) as error:
            raise damaged(file, str(error)) from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        version = found.get("format") if isinstance(found, dict) else None
        raise damaged(file, f"its format is {version!r} and this Memograft reads format {_FORMAT}")
    known = {f.name for f in fields(Header)} | {SEAL}
    if set(found) not in (known, known - {SEAL, "checksums"}):
        raise damaged(file, f"its fields are {sorted(found)}")
    counts = ("dimension", "entries", "sources", "sources_bytes", "generation")
    if any(type(found[name]) is not int or found[name] < 0 for name in counts) or found["dtype"] != "float32":
        raise damaged(file, "a number in it is out of its range")
    shapes = {"deleted": list, "calibration": dict, "indexes": dict}
    if not all(isinstance(found[name], shape) for name, shape in shapes.items()):
        raise damaged(file, "a field has the wrong type")
    if SEAL in found and not is_sealed(found):
        raise damaged(file, "its checksum is wrong")
    values = {name: value for name, value in found.items() if name != SEAL}
    return Header(**{"checksums": None, **values, "deleted": tuple(found["deleted"])})


def counted(header: Header) -> list[tuple[str, int, int | None]]:
    """(name, valid bytes, their CRC-32 or None) of the four arrays and of sources.jsonl."""
    sums = header.checksums or {}
    sizes = [header.entries * dtype.itemsize for _, dtype in _ARRAYS.values()]
    sizes[0] *= header.dimension
    arrays = zip(Files.names(header), sizes, map(sums.get, _ARRAYS), strict=True)
    return [*arrays, (SOURCES, header.sources_bytes, sums.get(_LINES))]


class Files:
    """The files of one datastore. There may be one writer at a time; the owner of this object locks.

    Args:
        folder: an existing folder.
        header: its valid state.

    Raises:
        StoreCorruptError: a file is missing or shorter than the header says, or a small array is damaged. The keys are
            read only by `rtd/verify.py`.
        StoreError: a file cannot be read.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        self.folder, self.header = folder, header
        self._pending = self._whole = header  # including appended data; `_whole` only complete examples
        if sys.byteorder != "little":
            raise StoreError("a datastore is little-endian, and this machine is not; use another machine")
        for name, size, _ in counted(header):
            with told(folder / name, StoreError, "read"):
                check_size(folder / name, size)
        self.entries = self._map()
        for name in _SMALL:
            self.compare(name)
        numbers = self.entries.sources
        if header.checksums is None and len(numbers) and not 0 <= numbers.min() <= numbers.max() < header.sources:
            raise damaged(self.file("sources"), "it refers to sources that do not exist")

    @classmethod
    def current(cls, folder: Path, header: Header) -> Files:
        """The files of this header, or of a newer one if a writer has compacted them meanwhile."""
        while True:
            try:
                return cls(folder, header)
            except StoreCorruptError:
                if (now := read_header(folder)) in (None, header):
                    raise
                assert now is not None
                header = now

    def append(self, entries: Entries) -> None:
        """Append entries. Their source numbers count from the number of the next source.

        They become valid, with their sources, at the next `commit`.

        Raises:
            ModelMismatchError: the keys have another width.
            StoreError: they cannot be written; everything since the last commit has to be appended again.
        """
        width = entries.keys.shape[1]
        now = replace(self._pending, dimension=self._pending.dimension or width)
        if width != now.dimension:
            raise ModelMismatchError(
                f"{self.folder} holds keys of D={now.dimension}, got keys of D={width}; use another folder"
            )
        entries = entries._replace(sources=entries.sources + now.sources)
        data = {name: array.astype(_ARRAYS[name][1]).tobytes() for name, array in entries._asdict().items()}
        with self._writing():
            for (name, new), file in zip(data.items(), self.names(now), strict=True):
                row = _ARRAYS[name][1].itemsize * (width if name == "keys" else 1)
                self._write(file, now.entries * row, new)
        self._pending = replace(now, entries=now.entries + len(entries.values), checksums=_continued(now, data))

    def forget(self) -> None:
        """Drop appended entries whose sources were not appended."""
        self._pending = self._whole

    def append_sources(self, lines: Sequence[str]) -> None:
        """Append the sources of the entries that were appended since the last call; see `append`."""
        now, text = self._pending, "".join(f"{line}\n" for line in lines).encode()
        with self._writing():
            self._write(SOURCES, now.sources_bytes, text)
        self._pending = replace(
            now,
            sources=now.sources + len(lines),
            sources_bytes=now.sources_bytes + len(text),
            checksums=_continued(now, {_LINES: text}),
        )
        self._whole = self._pending

    def commit(self, **changes: Unpack[Changes]) -> None:
        """Make appended data valid and change fields of the header. When this returns, everything is on disk.

        Raises:
            StoreError: writing failed, for example because the disk is full. Earlier commits are intact.
        """
        header = replace(self._pending, **changes)
        with self._writing():
            if header.entries:
                for name in (*self.names(header), SOURCES):
                    sync(self.folder / name)
            draft = self.folder / f"{HEADER}.new"
            draft.write_text(json.dumps(sealed(asdict(header)), indent=1), encoding="utf-8")
            sync(draft)
            os.replace(draft, self.folder / HEADER)
            sync(self.folder)
        remap = (header.entries, header.generation) != (self.header.entries, self.header.generation)
        self.header = self._pending = self._whole = header
        if remap:
            self.entries = self._map()

    def rewrite(self, alive: NDArray[np.bool_], rows: int = 65_536) -> Changes:
        """Copy the entries selected by `alive` (N,) to files of the next generation, which a `commit` makes valid.

        Returns:
            The changes to commit, including checksums.

        Raises:
            StoreCorruptError: the files are damaged, and checksums of the copies would hide that.
        """
        for name in _ARRAYS:
            self.compare(name)
        changes: Changes = {"generation": self.header.generation + 1, "entries": int(alive.sum())}
        sums = {_LINES: zlib.crc32(b"".join(line + b"\n" for line in self.source_lines()))}
        with self._writing():
            names = self.names(replace(self.header, **changes))
            for (name, array), file in zip(self.entries._asdict().items(), names, strict=True):
                sums[name] = 0
                with open(self.folder / file, "wb") as stream:
                    for start in range(0, len(alive), rows):
                        data = array[start : start + rows][alive[start : start + rows]].tobytes()
                        sums[name] = zlib.crc32(data, sums[name])
                        stream.write(data)
        return {**changes, "checksums": sums, "indexes": {}}

    def copy(self, target: Path) -> None:
        """Copy the valid data to another folder, the header last.

        Raises:
            StoreError: a file cannot be read or written.
        """
        try:
            target.mkdir(parents=True, exist_ok=True)
            for file in self.folder.iterdir():
                if file.name not in (HEADER, "writer.lock"):
                    shutil.copy2(file, target / file.name)
        except OSError as error:
            raise StoreError(f"{self.folder} could not be copied ({error}); choose another folder") from error
        Files(target, self.header).commit()

    def clean(self) -> None:
        """Remove files of earlier generations and indexes, and those left by crashes.

        Raises:
            StoreError: a file cannot be removed. The datastore is intact.
        """
        kept = {HEADER, SOURCES, "writer.lock", *self.names(self.header)}
        kept |= {file["name"] for made in self.header.indexes.values() for file in made["files"]}
        patterns = ("*.new", "index-*.faiss", *(f"{name}-*.{suffix}" for name, (suffix, _) in _ARRAYS.items()))
        for file in (file for pattern in patterns for file in self.folder.glob(pattern)):
            if file.name not in kept:
                with told(file, StoreError, "removed", "remove it; the entries are safe, and the call is done"):
                    file.unlink(missing_ok=True)

    def source_lines(self) -> list[bytes]:
        """The valid lines of sources.jsonl.

        Raises:
            StoreCorruptError: they are damaged.
            StoreError: they cannot be read.
        """
        header, file = self.header, self.folder / SOURCES
        if not header.sources_bytes:
            return []
        with told(file, StoreError, "read"), open(file, "rb") as stream:
            text = stream.read(header.sources_bytes)
        if header.checksums is not None and zlib.crc32(text) != header.checksums[_LINES]:
            raise damaged(file, "its checksum is wrong")
        lines = text.split(b"\n")[:-1]
        if len(lines) != header.sources:
            raise damaged(file, f"it must have {header.sources} lines and has {len(lines)}")
        return lines

    def compare(self, name: str) -> None:
        """Compare a whole array with its checksum, if it has one.

        Raises:
            StoreCorruptError: it is damaged.
        """
        sums, array = self.header.checksums, getattr(self.entries, name)
        if sums is not None and zlib.crc32(array) != sums[name]:
            raise damaged(self.file(name), "its checksum is wrong")

    def file(self, name: str) -> Path:
        """The file of one of the four arrays."""
        return self.folder / f"{name}-{self.header.generation}.{_ARRAYS[name][0]}"

    @staticmethod
    def names(header: Header) -> list[str]:
        """The files of the four arrays."""
        return [f"{name}-{header.generation}.{suffix}" for name, (suffix, _) in _ARRAYS.items()]

    def _write(self, name: str, offset: int, data: bytes) -> None:
        """Write `data` at `offset`, and truncate the file after it."""
        file = self.folder / name
        with open(file, "r+b" if file.exists() else "w+b") as stream:
            stream.truncate(offset)
            stream.seek(offset)
            stream.write(data)

    def _map(self) -> Entries:
        arrays: list[Any] = []
        for name, (what, (_, dtype)) in zip(self.names(self.header), _ARRAYS.items(), strict=True):
            shape = (self.header.entries, self.header.dimension) if what == "keys" else (self.header.entries,)
            file, empty = self.folder / name, not np.prod(shape)
            with told(file, StoreError, "read"):
                arrays.append(np.zeros(shape, dtype) if empty else np.memmap(file, dtype, "r", shape=shape))
        return Entries(*arrays)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Convert an OSError to a StoreError, and forget data that was not committed."""
        try:
            yield
        except OSError as error:
            self._pending = self._whole = self.header
            raise StoreError(
                f"{self.folder} could not be written ({error}); its {self.header.entries} entries are safe, so free "
                "some space and repeat the call, which then continues"
            ) from error


def check_size(file: Path, size: int) -> None:
    """Refuse a file with fewer than `size` bytes. It may be missing if `size` is 0."""
    found = file.stat().st_size if file.exists() else 0
    if found < size:
        raise damaged(file, f"it must have {size} bytes and has {found}")


def damaged(file: Path, reason: str) -> StoreCorruptError:
    """The error for a damaged file."""
    return StoreCorruptError(
        f"{file} cannot be used as a datastore's file: {reason}; restore the folder from a backup, or build the "
        "datastore again in another one"
    )


def _continued(header: Header, data: Mapping[str, bytes]) -> Mapping[str, int] | None:
    """The checksums after appending. Without checksums there are none until the datastore is compacted."""
    if header.checksums is None:
        return None
    return {**header.checksums, **{name: zlib.crc32(new, header.checksums[name]) for name, new in data.items()}}
