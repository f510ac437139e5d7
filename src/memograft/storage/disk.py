"""Flush files to disk, and detect damaged ones by checksums.

Checksums detect damage, not forgery. Files that only grow have a CRC-32, which can be continued, unlike hashlib's
digests. Small JSON files contain a digest of their own values.
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

JsonObject = dict[str, Any]  # content of a JSON file before it is checked
SEAL = "checksum"  # key of a JSON file's digest of its other values
_BLOCK = 2**20


@dataclass(frozen=True)
class Findings:
    """The result of verifying a folder.

    Attributes:
        damaged: damaged files, with an error message for each.
        unsummed: files without checksums, written by older versions.
    """

    damaged: dict[Path, str] = field(default_factory=dict)
    unsummed: list[Path] = field(default_factory=list)

    def or_raise(self) -> list[Path]:
        """Return the files without checksums.

        Raises:
            StoreCorruptError: a file is damaged; the message names all of them.
        """
        if self.damaged:
            raise StoreCorruptError("\n".join(self.damaged.values()))
        return self.unsummed


def sync(path: Path) -> None:
    """Flush a file, or the renames and deletions in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def told(
    path: str | Path, error: type[MemograftError], what: str, remedy: str = "pass a path that can"
) -> Iterator[None]:
    """Convert an OSError about a path to `error`; `what` completes "the path cannot be ..."."""
    try:
        if "\0" in str(path):
            raise OSError("a path cannot contain NUL")
        yield
    except OSError as e:
        raise error(f"{str(path)!r} cannot be {what} ({e.strerror or e}); {remedy}") from e


def is_there(file: Path) -> bool:
    """Whether a store's file exists.

    Raises:
        StoreError: it cannot be determined: the folder is not readable, or the path is too long.
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
    """JSON values with their digest as `SEAL`."""
    return {**values, SEAL: _digest(values)}


def is_sealed(values: Mapping[str, object]) -> bool:
    """Whether values that were read match their digest."""
    return bool(_digest(values) == values.get(SEAL))


def _digest(values: Mapping[str, object]) -> str:
    as_read = json.loads(json.dumps(values))  # tuples become lists, and keys strings
    as_read.pop(SEAL, None)
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()
