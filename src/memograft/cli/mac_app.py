"""`memograft mac add | rm | info`: manage a bank of modulations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from memograft.cli.console import out, reporting, warn
from memograft.cli.options import (
    AddressOption,
    CpusOption,
    DeviceOption,
    GpusOption,
    JsonOption,
    ModelOption,
    WorkersOption,
)

mac_app = typer.Typer(
    help="Banks of modulations (MAC): documents that a question attends to without their text.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

BankArgument = Annotated[Path, typer.Argument(help="Folder of the bank.", metavar="BANK")]


@mac_app.command()
def add(
    bank: BankArgument,
    paths: Annotated[list[Path], typer.Argument(help="Files and folders to add.", metavar="FILE|FOLDER...")],
    mac: Annotated[
        Path | None, typer.Option(help="Folder of `memograft train mac`, to make a new bank; it is copied into it.")
    ] = None,
    model: ModelOption = "tiny",
    most: Annotated[
        int | None, typer.Option(min=1, help="Modulations that the bank may have; the nearest are merged.")
    ] = None,
    device: DeviceOption = None,
    workers: WorkersOption = 1,
    ray_address: AddressOption = None,
    cpus: CpusOption = 1,
    gpus: GpusOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Add files to a bank, with one pass each. A file that has changed replaces what the bank has of it."""
    with reporting(as_json) as result:
        from memograft.cli.memorize import documents_of, id_in
        from memograft.cli.models import load_engine
        from memograft.cluster.ingest import memorize_all
        from memograft.cluster.pool import Pool
        from memograft.documents import Document
        from memograft.memory.mac.bank import MacBank

        documents, failed = list[Document](), list[dict[str, str]]()
        for path in paths:
            read, unread = documents_of([path], lambda file, path=path: id_in(file, path))  # type: ignore[misc]
            documents += read
            failed += unread
        opened, pool = MacBank(bank, mac), Pool(workers, ray_address, cpus, gpus)
        if pool.alone:
            with load_engine(model, device) as engine:
                count = opened.add(engine, documents, most=most, progress=not as_json)
        else:
            done = memorize_all(documents, opened, model=model, pool=pool, device=device, progress=not as_json)
            count = done.count("made")
            if most is not None:
                opened.merge(most)
        for failure in failed:
            warn(f"not read: {failure['reason']}")
        result |= {"bank": str(bank), "added": count, "documents": len(opened), "failed": failed}
        if not as_json:
            out().print(Text(f"added {count} of {len(documents)} documents: {bank} has {len(opened)}"), soft_wrap=True)


@mac_app.command()
def rm(
    bank: BankArgument,
    ids: Annotated[
        list[str],
        typer.Argument(help="Names of files, or their paths in the folder that was added.", metavar="ID..."),
    ],
    as_json: JsonOption = False,
) -> None:
    """Remove documents from a bank."""
    with reporting(as_json) as result:
        from memograft.memory.mac.bank import MacBank

        opened = MacBank(bank)
        count = opened.remove(ids)
        result |= {"bank": str(bank), "removed": count, "documents": len(opened)}
        if not as_json:
            out().print(Text(f"removed {count} documents: {bank} has {len(opened)}"), soft_wrap=True)


@mac_app.command()
def info(bank: BankArgument, as_json: JsonOption = False) -> None:
    """Show what a bank has."""
    with reporting(as_json) as result:
        from memograft.memory.mac.bank import MacBank

        opened = MacBank(bank)
        mac, entries = opened.mac, opened.entries
        result |= {
            "bank": str(bank),
            "documents": list(opened.ids),
            "modulations": len(entries),
            "merged": sum(len(entry.ids) > 1 for entry in entries),
            "bytes": opened.nbytes,
            "tokens": mac.tokens,
            "mac": mac.id,
            "model": mac.fingerprint,
        }
        if not as_json:
            said = f"{len(opened)} documents, {len(entries)} modulations of {mac.tokens} tokens, {opened.nbytes} bytes"
            out().print(Text(f"{said}; MAC {mac.id}, of the model {mac.fingerprint}"), soft_wrap=True)
            for id in opened.ids:
                out().print(Text(id), soft_wrap=True)
