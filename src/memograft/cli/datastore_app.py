"""`memograft datastore build | info | add | rm` and their options. Importing this imports neither torch nor FAISS."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from memograft.cli.console import reporting
from memograft.cli.options import JsonOption, ModelOption

datastore_app = typer.Typer(
    help="Datastores: examples that change answers without training, and are cited.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class KeyIndexKind(StrEnum):
    """The kind of index."""

    flat = "flat"
    hnsw = "hnsw"
    ivfpq = "ivfpq"
    sq8 = "sq8"


class KeyPlace(StrEnum):
    """Which hidden states are the keys."""

    ffn_input = "ffn_input"
    head_input = "head_input"


PathsArgument = Annotated[
    list[Path],
    typer.Argument(
        help="JSONL files (an example per line: prompt, question or messages, and answer; or text), and txt, md, pdf "
        "and html files, which are learned as plain text. Folders are read recursively.",
        metavar="FILE|FOLDER...",
    ),
]
FolderArgument = Annotated[Path, typer.Argument(help="Folder of the datastore.", metavar="FOLDER")]
StrideOption = Annotated[
    int | None, typer.Option(min=1, help="Tokens between the windows over a long text; left out, half a window.")
]
BatchOption = Annotated[int, typer.Option(min=1, help="Examples in one prefill.")]


@datastore_app.command()
def build(
    paths: PathsArgument,
    folder: Annotated[Path, typer.Option("--out", help="Folder of the datastore; an existing one is continued.")],
    model: ModelOption = "tiny",
    index: Annotated[KeyIndexKind, typer.Option(help="How entries are found; flat is exact.")] = KeyIndexKind.flat,
    place: Annotated[
        KeyPlace,
        typer.Option(
            help="Hidden states used as keys: ffn_input does not depend on memories; head_input is the paper's."
        ),
    ] = KeyPlace.ffn_input,
    stride: StrideOption = None,
    batch_size: BatchOption = 16,
    as_json: JsonOption = False,
) -> None:
    """Learn examples into a datastore. An interrupted command continues when it is repeated."""
    with reporting(as_json) as result:
        from memograft.cli.datastore import build as run

        result |= run(
            paths,
            folder=folder,
            model=model,
            index=index.value,
            place=place.value,
            stride=stride,
            batch_size=batch_size,
            quiet=as_json,
        )


@datastore_app.command()
def info(
    folder: FolderArgument,
    ids: Annotated[bool, typer.Option("--ids", help="List the sources.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a datastore's contents, model and calibration."""
    with reporting(as_json) as result:
        from memograft.cli.datastore_info import info as run

        result |= run(folder, ids=ids, quiet=as_json)


@datastore_app.command()
def add(
    folder: FolderArgument,
    paths: PathsArgument,
    model: ModelOption = "tiny",
    stride: StrideOption = None,
    batch_size: BatchOption = 16,
    as_json: JsonOption = False,
) -> None:
    """Learn more examples into a datastore, with the model it was built with."""
    with reporting(as_json) as result:
        from memograft.cli.datastore import add as run

        result |= run(folder, paths, model=model, stride=stride, batch_size=batch_size, quiet=as_json)


@datastore_app.command()
def rm(
    folder: FolderArgument,
    ids: Annotated[list[str] | None, typer.Argument(help="Sources to remove.", metavar="ID...")] = None,
    missing_ok: Annotated[bool, typer.Option("--missing-ok", help="Ignore unknown ids.")] = False,
    compact: Annotated[bool, typer.Option("--compact", help="Free the space of removed sources.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove sources with all their entries."""
    if not ids and not compact:
        raise typer.BadParameter("name at least one ID to remove, or --compact to free the space of earlier ones")
    with reporting(as_json) as result:
        from memograft.cli.datastore import remove as run

        result |= run(folder, ids or [], missing_ok=missing_ok, compact=compact, quiet=as_json)
