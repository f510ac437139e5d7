"""Types of the nested values in a datastore's header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict

__all__ = ["Calibration", "Changes", "IndexFile", "IndexFiles", "Temperatures"]


class Temperatures(TypedDict):
    """T for each `distance` of `Rtd`."""

    squared: float
    plain: float


class Calibration(TypedDict, total=False):
    """The calibration of a datastore, see `rtd/calibrate.py`; empty without entries.

    `entries` is the number of entries at the time, `sample` how many of them were used.
    """

    temperature: Temperatures
    gate: float
    sample: int
    entries: int


class IndexFile(TypedDict):
    """A FAISS file with CRC-32 of its ends, and of the whole file (not in older datastores)."""

    name: str
    bytes: int
    crc32: int
    crc32_whole: NotRequired[int]


class IndexFiles(TypedDict):
    """The index for one number of heads: how many entries it covers, and a file per head; none if it is not needed."""

    entries: int
    files: list[IndexFile]


class Changes(TypedDict, total=False):
    """Fields of a header that can be changed explicitly, not by appending."""

    entries: int
    deleted: tuple[int, ...]
    generation: int
    calibration: Calibration
    indexes: Mapping[str, IndexFiles]
    checksums: Mapping[str, int]
