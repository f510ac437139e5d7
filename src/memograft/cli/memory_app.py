"""`memograft memory ls | show | rm | pin | unpin | gc | export | import`: manage the folder of a bank."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from memograft.cli.console import out, reporting
from memograft.cli.options import JsonOption
from memograft.errors import MemoryFormatError, SettingsError
from memograft.memory import prefix_folder
from memograft.memory.bank import Bank, Entry
from memograft.storage.disk import JsonObject

memory_app = typer.Typer(
    help="Kept memories: the folder of a bank.", no_args_is_help=True, pretty_exceptions_enable=False
)

BankArgument = Annotated[Path, typer.Argument(help="Folder of the bank.", metavar="BANK")]
IdArgument = Annotated[str, typer.Argument(help="Id of a memory, or the beginning of an id.", metavar="ID")]
IdsArgument = Annotated[list[str], typer.Argument(help="Ids of memories, or beginnings of ids.", metavar="ID...")]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SHOWN = 60  # characters of a document


@memory_app.command("ls")
def list_(bank: BankArgument, as_json: JsonOption = False) -> None:
    """List the entries of a bank, most recently used first."""
    with reporting(as_json) as result:
        entries = _opened(bank).entries()
        result |= {"memories": [_entry_json(entry) for entry in entries], "bytes": sum(e.size for e in entries)}
        if not as_json:
            table = Table(box=None, padding=(0, 2, 0, 0), expand=True)
            for heading, width in {"id": 12, "kind": 6, "bytes": 10, "last used": 16, "pin": 3}.items():
                table.add_column(heading, width=width, no_wrap=True)
            table.add_column("documents", ratio=1, no_wrap=True)
            for entry in entries:
                first, *more = [*(document["text"] for document in _about(entry)["documents"]), ""]
                shown = first if len(first) <= _SHOWN else f"{first[:_SHOWN]}..."
                shown += f" (and {len(more) - 1} more)" if len(more) > 1 else ""
                pinned = "yes" if entry.pinned else ""
                document = Text(shown.replace("\n", " "))
                used = _when(entry)[:16].replace("T", " ")
                table.add_row(entry.id[:12], entry.kind, str(entry.size), used, pinned, document)
            out().print(table)
            memories = sum(entry.kind == "memory" for entry in entries)
            prefixes = f" and {len(entries) - memories} prefixes" if memories < len(entries) else ""
            out().print(f"{memories} memories{prefixes}, {result['bytes']} bytes")


@memory_app.command()
def show(bank: BankArgument, id: IdArgument, as_json: JsonOption = False) -> None:
    """Show a memory with its documents, settings and report; or the keys and values of a document."""
    with reporting(as_json) as result:
        entry = _opened(bank).entry(id)
        about = _about(entry)
        shown = ("fingerprint", "documents", *(("settings",) if entry.kind == "memory" else ("tokens", "int8")))
        result |= _entry_json(entry) | {name: about[name] for name in shown}
        if entry.kind == "memory":
            done = ("steps", "loss_before", "loss_after", "kl", "seconds")
            result |= {"report": {name: about["report"].get(name) for name in done}}
        if not as_json:
            out().print(Text(f"{entry.id}, of the model {about['fingerprint']}, last used {_when(entry)}"))
            out().print(Text(_made(entry, about)), soft_wrap=True)
            for document in about["documents"]:
                out().print(Text(f"\n[{document['id']}] {document['text']}"), soft_wrap=True)


@memory_app.command()
def rm(bank: BankArgument, ids: IdsArgument, as_json: JsonOption = False) -> None:
    """Remove memories."""
    _for_each(bank, ids, Bank.remove, "removed", as_json)


@memory_app.command()
def pin(bank: BankArgument, ids: IdsArgument, as_json: JsonOption = False) -> None:
    """Protect memories from `gc`."""
    _for_each(bank, ids, Bank.pin, "pinned", as_json)


@memory_app.command()
def unpin(bank: BankArgument, ids: IdsArgument, as_json: JsonOption = False) -> None:
    """Allow `gc` to remove memories again."""
    _for_each(bank, ids, Bank.unpin, "unpinned", as_json)


@memory_app.command()
def gc(
    bank: BankArgument,
    max_bytes: Annotated[str, typer.Option(help="Size limit, such as 500M or 2G.", metavar="SIZE")],
    as_json: JsonOption = False,
) -> None:
    """Remove least recently used memories until the rest fits the size. Pinned ones stay."""
    with reporting(as_json) as result:
        _tell(result, "removed", _opened(bank).gc(_bytes(max_bytes)), as_json)


@memory_app.command()
def export(
    bank: BankArgument,
    id: IdArgument,
    file: Annotated[Path, typer.Argument(help="Zip file to write.", metavar="FILE")],
    as_json: JsonOption = False,
) -> None:
    """Write a memory, as a PEFT LoRA folder, to a zip file."""
    with reporting(as_json) as result:
        entry = _opened(bank).export(id, file)
        _tell(result, "exported", [entry], as_json)


@memory_app.command("import")
def import_(
    bank: BankArgument,
    files: Annotated[list[Path], typer.Argument(help="Zip files of `export`, or memories' folders.", metavar="FILE")],
    as_json: JsonOption = False,
) -> None:
    """Add memories to a bank, which is created if it does not exist. Damaged ones are refused."""
    with reporting(as_json) as result:
        opened = Bank(bank)
        _tell(result, "imported", [opened.take(file) for file in files], as_json)


def _for_each(folder: Path, ids: list[str], change: Callable[[Bank, str], None], done: str, as_json: bool) -> None:
    with reporting(as_json) as result:
        bank = _opened(folder)
        entries = [bank.entry(id) for id in ids]  # all ids are checked before any is changed
        for entry in entries:
            change(bank, entry.id)
        _tell(result, done, entries, as_json)


def _opened(folder: Path) -> Bank:
    if not folder.is_dir():
        raise MemoryFormatError(f"{folder} must be the folder of a bank, but does not exist; check the path")
    return Bank(folder)


def _about(entry: Entry) -> JsonObject:
    """The content of an entry's JSON file."""
    from memograft.memory import folder

    return folder.about(entry.path) if entry.kind == "memory" else prefix_folder.about(entry.path)


def _made(entry: Entry, about: JsonObject) -> str:
    if entry.kind == "prefix":
        start, end = about["tokens"]
        return f"keys and values of tokens {start} to {end}, {'rounded to int8' if about['int8'] else 'exact'}"
    settings = ", ".join(f"{name}={value}" for name, value in about["settings"].items())
    report = about["report"]
    return f"{settings}\nloss {report['loss_before']:.3f} -> {report['loss_after']:.3f}, KL {report['kl']:.3f}"


def _entry_json(entry: Entry) -> dict[str, object]:
    return {"id": entry.id, "kind": entry.kind, "bytes": entry.size, "used": _when(entry), "pinned": entry.pinned}


def _when(entry: Entry) -> str:
    return datetime.fromtimestamp(entry.used, UTC).isoformat(timespec="seconds")


def _tell(result: dict[str, object], done: str, entries: list[Entry], quiet: bool) -> None:
    result[done] = [entry.id for entry in entries]
    if not quiet:
        for entry in entries:
            out().print(f"{done} {entry.id}")
        if not entries:
            out().print(f"nothing {done}")


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", text.strip().lower())
    if match is None:
        raise SettingsError(f"`--max-bytes` must be a size such as 500M or 2G, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])
