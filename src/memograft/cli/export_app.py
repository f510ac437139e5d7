"""The command `memograft export` and its options."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from memograft.cli.console import reporting
from memograft.cli.options import JsonOption


class ServerKind(StrEnum):
    """What is to load the adapters."""

    vllm = "vllm"
    sglang = "sglang"


def export(
    folder: Annotated[Path, typer.Argument(help="A saved memory, or the folder of a bank.", metavar="FOLDER")],
    server: Annotated[ServerKind, typer.Option("--for", help="What is to load the adapters.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for exported memories; it may have others.")],
    base_model: Annotated[
        str | None,
        typer.Option(
            help="Name under which the base model is served, as in `vllm serve NAME`; left out, the one that the "
            "memory was made with."
        ),
    ] = None,
    max_rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Largest rank that the server takes, its --max-lora-rank. A larger one is cut, and the error is "
            "printed. Left out, 512 for vLLM, any for SGLang.",
        ),
    ] = None,
    ids: Annotated[
        list[str] | None,
        typer.Option("--id", help="Of a bank, only this memory (or the beginning of its id). May be repeated."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="A name to ask for the memory by, besides its id; for one memory.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write memories as LoRA folders that vLLM and SGLang load."""
    with reporting(as_json) as result:
        from memograft.cli.export import export as run

        result |= run(
            folder,
            server=server.value,
            into=out_folder,
            base_model=base_model,
            max_rank=max_rank,
            ids=ids or [],
            name=name,
            quiet=as_json,
        )
