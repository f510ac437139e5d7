"""Options that several commands share, and what their words mean. Importing this loads neither torch nor FAISS."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from memograft.evaluation.protocol import PROTOCOLS
from memograft.evaluation.readers import CONTEXTS, FORMATS

STORE = Path(".memograft")


class IndexKind(StrEnum):
    """How FAISS searches."""

    flat = "flat"
    hnsw = "hnsw"
    ivf = "ivf"


class GateKind(StrEnum):
    """Where the memorized distribution may speak."""

    none = "none"
    support = "support"


class Conflicts(StrEnum):
    """What is memorized of documents that contradict each other."""

    first = "first"
    none = "none"


class Split(StrEnum):
    """Which part of the questions, which a hash of each question decides."""

    test = "test"
    tune = "tune"
    all = "all"


def _relevance(text: str) -> str | float:
    if text in ("auto", "none"):
        return text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value <= 1):
        raise typer.BadParameter(f"it must be auto, none or a number of at most 1, got {text!r}; leave it out for auto")
    return value


def _not_negative(value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise typer.BadParameter(f"it must be a number that is not negative, got {value:g}; 0 switches it off")
    return value


StoreOption = Annotated[Path, typer.Option(help="Folder of the vector store.")]
ModelOption = Annotated[
    str, typer.Option(help='"tiny" (bundled), "smollm2", a .gguf file, a folder, or a Hugging Face id.')
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help='Where the model runs: "cpu", "cuda:1", "mps"; left out, a CUDA GPU if there is one, else the CPU.'
    ),
]
StepsOption = Annotated[
    int | None, typer.Option(min=1, help="Optimiser steps of memorizing; left out, FastMem's default.")
]
RateOption = Annotated[float | None, typer.Option(help="Learning rate of memorizing; left out, FastMem's default.")]
RankOption = Annotated[int | None, typer.Option(min=1, help="Rank of the LoRA; left out, FastMem's default.")]
GateOption = Annotated[
    GateKind | None, typer.Option(help="Let the base model's choice stand where it occurs in the documents.")
]
RelevanceOption = Annotated[
    object,
    typer.Option(
        parser=_relevance,
        metavar="auto|none|NUMBER",
        help="Memorize only documents this much about the question (1 at most); none: all of them.",
    ),
]
ConflictsOption = Annotated[
    Conflicts | None, typer.Option(help="Of documents that contradict each other memorize the first, or (none) all.")
]
ContrastOption = Annotated[
    float | None, typer.Option(callback=_not_negative, help="Push answers this far away from the base model's.")
]
SettingsOption = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        help="Memorize as this file of `memograft tune` or `FastMem.save` says; other options beside it count more.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
ChunkOption = Annotated[int, typer.Option(min=1, help="Characters of a passage at most.")]

# Of the commands that ask many questions.
QuestionsArgument = Annotated[
    str,
    typer.Argument(
        help='"world", which is bundled; a .json or .jsonl file of a public set or your own (.gz, .xz too); or an '
        "id of the hub.",
        metavar="world|FILE|ID",
    ),
]
FormatOption = Annotated[
    str | None, typer.Option(help=f"Of the file: {', '.join(FORMATS)} or own; left out, seen by its fields.")
]
ContextOption = Annotated[
    list[str] | None,
    typer.Option(help=f"Of a public set: {', '.join(CONTEXTS)}. May be repeated; left out, all that it can make."),
]
ProtocolOption = Annotated[
    str, typer.Option(help=f"How to ask and to read answers: {' or '.join(PROTOCOLS)} (FastMem's own).")
]
SetsOption = Annotated[list[str] | None, typer.Option(help="Only this set. May be repeated.")]
LengthOption = Annotated[
    int | None, typer.Option(min=1, help="Tokens of an answer at most; left out, the protocol's: 40 if plain.")
]
