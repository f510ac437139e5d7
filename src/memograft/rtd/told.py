"""What a datastore's header tells beside counts: of its own distances, and of its indexes. JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict

__all__ = ["Calibration", "Changes", "IndexFile", "IndexFiles", "Temperatures"]


class Temperatures(TypedDict):
    """T, for either distance of `Rtd`."""

    squared: float
    plain: float


class Calibration(TypedDict, total=False):
    """What a datastore has measured of itself, see `rtd/calibrate.py`; nothing where it is empty.

    `entries` is how many it had then, `sample` how many of them were looked at.
    """

    temperature: Temperatures
    gate: float
    sample: int
    entries: int


class IndexFile(TypedDict):
    """A FAISS file: CRC-32 of its ends, and of all of it (not in datastores from before there was one)."""

    name: str
    bytes: int
    crc32: int
    crc32_whole: NotRequired[int]


class IndexFiles(TypedDict):
    """The index of one number of heads: over how many entries, and a file per head; none where it is not worth one."""

    entries: int
    files: list[IndexFile]


class Changes(TypedDict, total=False):
    """Fields of a header that change by themselves, not by what is appended."""

    entries: int
    deleted: tuple[int, ...]
    generation: int
    calibration: Calibration
    indexes: Mapping[str, IndexFiles]
    checksums: Mapping[str, int]
