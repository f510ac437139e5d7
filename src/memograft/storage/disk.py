"""Files that are down on the disk, and are still what was written.

Checksums find damage, not forgery: whoever changes a file on purpose can change its checksum too. Files that only grow
have a running CRC-32, as it goes on where it was, which no digest of hashlib does; a small JSON file carries a digest
of its own values.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memograft.errors import MemograftError, StoreCorruptError, StoreError

__all__ = ["SEAL", "Findings", "JsonObject", "crc32", "is_sealed", "is_there", "sealed", "sync", "told"]

JsonObject = dict[str, Any]  # of a file, before its values are checked
SEAL = "checksum"  # the key of a JSON file's digest of its other values
_BLOCK = 2**20


@dataclass(frozen=True)
class Findings:
    """What reading a folder from end to end has shown.

    Attributes:
        damaged: the files that are not what was written, and the sentence that says so.
        unsummed: files without checksums, which were written before there were any.
    """

    damaged: dict[Path, str] = field(default_factory=dict)
    unsummed: list[Path] = field(default_factory=list)

    def or_raise(self) -> list[Path]:
        """The files without checksums.

        Raises:
            StoreCorruptError: a file is damaged; the message names each of them.
        """
        if self.damaged:
            raise StoreCorruptError("\n".join(self.damaged.values()))
        return self.unsummed


def sync(path: Path) -> None:
    """Bring a file, or the renames and deletions in a folder, down to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def told(
    path: str | Path, error: type[MemograftError], what: str, remedy: str = "pass a path that can"
) -> Iterator[None]:
    """Raise what the system refuses about a path as an error of ours; `what` is what could not be done, in words."""
    try:
        if "\0" in str(path):
            raise OSError("no path holds NUL")
        yield
    except OSError as e:
        raise error(f"{str(path)!r} cannot be {what} ({e.strerror or e}); {remedy}") from e


def is_there(file: Path) -> bool:
    """Whether a store's file is there.

    Raises:
        StoreError: the system does not say: one may not look into the folder, or the path is too long.
    """
    with told(file, StoreError, "read"):
        return file.exists()


def crc32(file: Path, size: int | None = None) -> int:
    """CRC-32 of a file's first `size` bytes, or of all of them."""
    checksum, left = 0, file.stat().st_size if size is None else size
    with open(file, "rb") as stream:
        while block := stream.read(min(left, _BLOCK)):
            checksum, left = zlib.crc32(block, checksum), left - len(block)
    return checksum


def sealed(values: Mapping[str, object]) -> dict[str, object]:
    """JSON values and, under `SEAL`, their digest."""
    return {**values, SEAL: _digest(values)}


def is_sealed(values: Mapping[str, object]) -> bool:
    """Whether what was read is what `sealed` returned."""
    return bool(_digest(values) == values.get(SEAL))


def _digest(values: Mapping[str, object]) -> str:
    as_read = json.loads(json.dumps(values))  # without tuples, and with strings for keys
    as_read.pop(SEAL, None)
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()
