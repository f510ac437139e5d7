"""`memograft export`: memories as LoRA folders for vLLM and SGLang."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from memograft.cli.console import out, warn
from memograft.errors import MemoryFormatError, SettingsError
from memograft.memory.bank import Bank
from memograft.memory.export import Exported, Server
from memograft.memory.export import export as write
from memograft.memory.folder import ABOUT

__all__ = ["export"]


def export(
    folder: Path,
    *,
    server: Server,
    into: Path,
    base_model: str | None,
    max_rank: int | None,
    ids: Sequence[str],
    name: str | None,
    quiet: bool,
) -> dict[str, object]:
    """Export a memory, or memories of a bank, and return JSON values.

    Raises:
        SettingsError: an option is wrong.
        MemoryFormatError: there is no memory, or a memory that was named, or all of a bank, cannot be exported.
    """
    paths = _memories(folder, ids)
    if name is not None and len(paths) != 1:
        raise SettingsError(f"`--name` names one memory, and {len(paths)} are exported; choose one with --id")
    exported: list[Exported] = []
    refused: dict[str, str] = {}
    for path in paths:
        try:
            made = write(path, into, server, base_model=base_model, max_rank=max_rank, name=name)
        except MemoryFormatError as error:
            if ids or len(paths) == 1:
                raise
            refused[path.name] = str(error)
            continue
        exported.append(made)
        if not quiet:
            out().print(Text(_said(made)), soft_wrap=True)
        for setting in made.left_out:
            warn(f"memory {made.memory} was made with `{setting}`, which {server} does not follow")
    for reason in refused.values():
        warn(f"not exported: {reason}")
    if not exported:
        raise MemoryFormatError(f"none of the {len(paths)} memories in {folder} can be exported; see the warnings")
    return {
        "out": str(into),
        "exported": [asdict(one) | {"folder": str(one.folder)} for one in exported],
        "not_exported": refused,
    }


def _memories(folder: Path, ids: Sequence[str]) -> list[Path]:
    """The folders of the memories that are meant."""
    if (folder / ABOUT).is_file() and not ids:
        return [folder]
    if not folder.is_dir():
        raise MemoryFormatError(f"{folder} must be a saved memory or the folder of a bank, but does not exist")
    bank = Bank(folder)
    if ids:
        return [bank.entry(id).path for id in ids]
    found = [entry.path for entry in bank.entries() if entry.kind == "memory" and (entry.path / ABOUT).is_file()]
    return found or [folder]  # which `export` refuses, with the reason


def _said(made: Exported) -> str:
    rank = f"rank {made.memory_rank}"
    if made.rank > made.memory_rank:
        rank += f" filled up to {made.rank}, exact"
    elif made.rank < made.memory_rank:
        rank += f" cut to {made.rank}, largest relative error {made.largest_error:.3g}"
    else:
        rank += ", exact"
    return f"{made.memory} -> {made.folder} ({rank}; base model {made.base_model})"
