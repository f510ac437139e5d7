"""Options that several commands share. Importing this imports neither torch nor FAISS."""

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
    """The kind of FAISS index."""

    flat = "flat"
    hnsw = "hnsw"
    ivf = "ivf"
    ivfpq = "ivfpq"


class GateKind(StrEnum):
    """Gates of FastMem."""

    none = "none"
    support = "support"


class Conflicts(StrEnum):
    """Which of contradicting documents are memorized."""

    first = "first"
    none = "none"


class Split(StrEnum):
    """A part of the questions, determined by a hash of each question."""

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


def _alpha(text: str) -> str | float:
    if text == "adaptive":
        return text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise typer.BadParameter(
            f"it must be a number that is not negative, got {text}; 0 switches it off, adaptive adapts it"
        )
    return value


def _layers(text: str) -> str | tuple[int, ...]:
    if text in ("low", "high"):
        return text
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise typer.BadParameter(f"it must be low, high or numbers of layers such as 10,12, got {text!r}; try high")
    return tuple(map(int, numbers))


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
    GateKind | None, typer.Option(help="support: keep the base model's token where it occurs in the documents.")
]
RelevanceOption = Annotated[
    object,
    typer.Option(
        parser=_relevance,
        metavar="auto|none|NUMBER",
        help="Least relevance of a memorized document (1 at most); none: memorize all.",
    ),
]
ConflictsOption = Annotated[
    Conflicts | None, typer.Option(help="Of documents that contradict each other, memorize the first, or all (none).")
]
ContrastOption = Annotated[
    object,
    typer.Option(
        parser=_alpha,
        metavar="adaptive|NUMBER",
        help="Strength of the contrast with the base model's distribution; 0: off; adaptive: by how much they differ.",
    ),
]
CadOption = Annotated[
    object,
    typer.Option(
        parser=_alpha,
        metavar="adaptive|NUMBER",
        help="Context-aware decoding: strength of the contrast with the prompt without documents; paper: 0.5.",
    ),
]
DolaOption = Annotated[
    object,
    typer.Option(
        parser=_layers,
        metavar="low|high|LAYERS",
        help="DoLa: contrast with an earlier layer, chosen for each token; with one number always that layer.",
    ),
]
SettingsOption = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        metavar="faithful|paper|FILE",
        help="A preset, or a settings file of `memograft tune` or `FastMem.save`; other options override it.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
ChunkOption = Annotated[int, typer.Option(min=1, help="Maximum characters of a passage.")]

# For commands that can share their work among workers.
WorkersOption = Annotated[
    int, typer.Option(min=1, help="Processes with a model each, run by Ray; 1: this process alone.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(help='Address of a Ray cluster, such as "auto"; left out, workers are started on this machine.'),
]
CpusOption = Annotated[int, typer.Option("--cpus-per-worker", min=1, help="Cores, and threads, of a worker.")]
GpusOption = Annotated[
    float, typer.Option("--gpus-per-worker", min=0, help="GPUs of a worker; 0.5 lets two share one.")
]

# For commands that ask many questions.
QuestionsArgument = Annotated[
    str,
    typer.Argument(
        help='"world", which is bundled; a .json or .jsonl file of a public set or your own (.gz, .xz too); or an '
        "id of the hub.",
        metavar="world|FILE|ID",
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(help=f"Format of the file: {', '.join(FORMATS)} or own; left out, recognised by its fields."),
]
ContextOption = Annotated[
    list[str] | None,
    typer.Option(help=f"Contexts of a public set: {', '.join(CONTEXTS)}. May be repeated; left out, all possible."),
]
ProtocolOption = Annotated[
    str, typer.Option(help=f"How to ask and to extract answers: {' or '.join(PROTOCOLS)} (FastMem's).")
]
SetsOption = Annotated[list[str] | None, typer.Option(help="Only this set. May be repeated.")]
LengthOption = Annotated[
    int | None, typer.Option(min=1, help="Maximum tokens of an answer; left out, the protocol's: 40 for plain.")
]
GistsOption = Annotated[
    list[str] | None,
    typer.Option(help='Answer from this gist of `memograft train gist`, or "FOLDER, refine=60". May be repeated.'),
]
MacsOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="Answer from this bank of `memograft mac add`: alone, and with the documents where one of them is about "
        "the question. May be repeated."
    ),
]
CubOption = Annotated[
    Path | None,
    typer.Option(
        help="Compare gold, conflicting and irrelevant pages as CUB does: the sets agrees, contradicts, and irrelevant "
        "or elsewhere. Prints a table, and draws bars into this .png file."
    ),
]
