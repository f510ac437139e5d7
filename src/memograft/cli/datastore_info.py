"""`memograft datastore info`: read a datastore's files without torch, FAISS or a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from memograft.cli.console import out
from memograft.errors import StoreCorruptError, StoreError
from memograft.rtd.files import Files, Header, read_header
from memograft.rtd.sources import Sources

__all__ = ["Known", "info", "known_sources", "must_exist"]


@dataclass(frozen=True)
class Known:
    """A source of a datastore, and its number of entries."""

    id: str
    text: str
    prompt: str
    entries: int


def must_exist(folder: Path) -> Header:
    """The header of the datastore in a folder.

    Raises:
        StoreError: there is none.
        StoreCorruptError: it is damaged.
    """
    header = read_header(folder)
    if header is None:
        raise StoreError(
            f"there is no datastore at {folder}; make one with `memograft datastore build FILE... --out {folder}`"
        )
    return header


def known_sources(folder: Path) -> list[Known]:
    """The sources of the datastore in a folder, in order; empty if there is no datastore."""
    header = read_header(folder)
    return [] if header is None else _known(_files(folder, header))


def info(folder: Path, *, ids: bool, quiet: bool) -> dict[str, object]:
    """Print a description of a datastore unless `quiet`, and return JSON values."""
    files = _files(folder, must_exist(folder))
    header, known = files.header, _known(files)
    entries = sum(source.entries for source in known)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    if not quiet:
        out().print(_table(folder, header, known, size))
        if ids:
            out().print(_sources_table(known))
    return {
        "folder": str(folder),
        "entries": entries,
        "sources": len(known),
        "deleted": {"entries": header.entries - entries, "sources": len(header.deleted)},
        "fingerprint": header.fingerprint,
        "place": header.place,
        "dimension": header.dimension,
        "dtype": header.dtype,
        "index": header.index,
        "heads": sorted(map(int, header.indexes)),
        "bytes": size,
        "temperature": header.calibration.get("temperature"),
        "gate": header.calibration.get("gate"),
        **({"ids": [{"id": source.id, "entries": source.entries} for source in known]} if ids else {}),
    }


def _files(folder: Path, header: Header) -> Files:
    """Its files. If a writer compacts them meanwhile, the new ones are opened."""
    while True:
        try:
            return Files(folder, header)
        except StoreCorruptError:
            if (now := must_exist(folder)) == header:
                raise
            header = now


def _known(files: Files) -> list[Known]:
    counts = np.bincount(files.entries.sources, minlength=files.header.sources)
    return [Known(s.id, s.text, s.prompt, int(counts[n])) for n, s in Sources(files).living()]


def _table(folder: Path, header: Header, known: list[Known], size: int) -> Table:
    table = Table(title=Text(str(folder)), title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    table.show_header = False
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    entries, temperature = sum(source.entries for source in known), header.calibration.get("temperature")
    rows = {"entries": f"{entries:,}", "sources": f"{len(known):,}"}
    if header.deleted:
        dead = header.entries - entries
        room = f", {dead:,} entries still on the disk: rm --compact" if dead else ""
        rows["deleted"] = f"{len(header.deleted):,} sources{room}"
    rows["model"] = f"{header.fingerprint}, {header.place}, D={header.dimension}, {header.dtype}"
    heads = [n for n in sorted(map(int, header.indexes)) if n > 1]
    rows["index"] = header.index + (f", for {', '.join(map(str, heads))} heads too" if heads else "")
    rows["on disk"] = decimal(size)
    if temperature:
        rows["temperature"] = f"{temperature['squared']:.4g} (plain distances: {temperature['plain']:.4g})"
        rows["gate"] = f"{header.calibration['gate']:.4g}, squared distance"
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _sources_table(known: list[Known]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True)
    table.add_column("id", overflow="fold", min_width=min(40, max((len(source.id) for source in known), default=0)))
    table.add_column("entries", justify="right", no_wrap=True)
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    for source in known:
        table.add_row(Text(source.id), f"{source.entries:,}", Text(" ".join(source.text[:200].split()), style="dim"))
    return table
