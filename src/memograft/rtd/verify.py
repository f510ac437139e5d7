"""Verify a datastore's folder: read all of it and compare it with its checksums. Opening one checks less."""

from __future__ import annotations

from pathlib import Path

from memograft.errors import StoreCorruptError
from memograft.rtd.files import HEADER, Files, Header, check_size, counted, damaged, read_header
from memograft.rtd.index import misfits
from memograft.rtd.sources import Sources
from memograft.storage.disk import Findings, crc32

__all__ = ["inspected"]


def inspected(folder: Path) -> Findings:
    """Find damage in a datastore's folder, and files without checksums. It may be written to meanwhile.

    Raises:
        OSError: a file cannot be read.
    """
    try:
        header = read_header(folder)
        while header is not None:
            found = _compared(folder, header)
            if not found.damaged or header == (header := read_header(folder)):  # otherwise a writer has compacted it
                return found
    except StoreCorruptError as error:
        return Findings({folder / HEADER: str(error)})
    return Findings({folder / HEADER: f"{folder / HEADER} is missing; restore the folder from a backup"})


def _compared(folder: Path, header: Header) -> Findings:
    found = Findings()
    for name, size, checksum in counted(header):
        file = folder / name
        try:
            check_size(file, size)
            if checksum is None:
                found.unsummed.append(file)
            elif size and crc32(file, size) != checksum:
                raise damaged(file, "its checksum is wrong")
        except StoreCorruptError as error:
            found.damaged[file] = str(error)
    for made in header.indexes.values():
        found.damaged.update(misfits(made, folder, whole=True))
    if found.unsummed and not found.damaged:
        try:  # checks that need no checksums
            Sources(Files(folder, header)).living()
        except StoreCorruptError as error:
            found.damaged[folder] = str(error)
    return found
