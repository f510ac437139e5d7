"""`memograft train gist` and its options. Importing this imports neither torch nor FAISS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memograft.cli.console import out, reporting
from memograft.cli.options import ContextOption, DeviceOption, FormatOption, JsonOption, ModelOption

train_app = typer.Typer(help="Train what a kind of memory needs.", no_args_is_help=True, pretty_exceptions_enable=False)


@train_app.callback()
def options() -> None:
    """Train what a kind of memory needs."""


@train_app.command()
def gist(
    data: Annotated[
        str,
        typer.Option(
            help="Questions with documents and answers: JSON lines, a file of a public set (SQuAD), or an id of the "
            "hub."
        ),
    ],
    folder: Annotated[
        Path, typer.Option("--out", help="Folder of the gist. An interrupted run with the same options continues.")
    ],
    model: ModelOption = "tiny",
    format: FormatOption = None,
    context: ContextOption = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Questions to train on; left out, all.")] = None,
    held_out: Annotated[
        str | None, typer.Option(help="Questions to score at each checkpoint, in a file as for --data.")
    ] = None,
    held_out_n: Annotated[int, typer.Option(min=1, help="How many of them.")] = 200,
    tokens: Annotated[int, typer.Option(min=1, help="Gist tokens for each document (k).")] = 10,
    window: Annotated[
        int, typer.Option(min=1, help="Tokens of a document at most; longer ones get several gists.")
    ] = 256,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 1000,
    groups: Annotated[int, typer.Option(min=1, help="Documents (with their questions) in a step.")] = 32,
    accumulate: Annotated[int, typer.Option(min=1, help="Passes of a step, each with a part of its documents.")] = 1,
    questions: Annotated[int, typer.Option(min=1, help="Questions about a document in a step, at most.")] = 4,
    documents: Annotated[
        int, typer.Option(min=1, help="Documents that a question sees at most, with others that distract.")
    ] = 3,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the LoRA.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    warmup: Annotated[float, typer.Option(min=0, max=1, help="Share of the steps in which it rises.")] = 0.03,
    distill: Annotated[
        float,
        typer.Option(min=0, max=1, help="Weight of the KL from the model with the documents in its prompt."),
    ] = 0.0,
    ask: Annotated[
        float, typer.Option(min=0, max=1, help="Weight of a question's token in the loss; an answer's is 1.")
    ] = 0.0,
    on_documents: Annotated[
        bool, typer.Option("--on-documents", help="The LoRA also acts on the documents' tokens.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and batches.")] = 0,
    start: Annotated[
        Path | None, typer.Option(help="Begin with the weights of this gist of the same model and rank.")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
    stop_at: Annotated[int | None, typer.Option(min=1, help="Stop at this step; a later run continues.")] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train gist tokens: documents as the keys and values of a few tokens. The model stays as it is."""
    with reporting(as_json) as result:
        from memograft.cli.train_gist import train_gist as run
        from memograft.memory.gist.train import GistTraining

        settings = GistTraining(
            tokens=tokens,
            window=window,
            steps=steps,
            groups=groups,
            questions=questions,
            documents=documents,
            rank=rank,
            learning_rate=learning_rate,
            warmup=warmup,
            distill=distill,
            ask=ask,
            on_documents=on_documents,
            accumulate=accumulate,
            seed=seed,
        )
        result |= run(
            settings,
            data=data,
            folder=folder,
            model=model,
            format=format,
            contexts=context or [],
            n=n,
            held_out=held_out,
            held_out_n=held_out_n,
            start=start,
            every=every,
            stop_at=stop_at,
            device=device,
            quiet=as_json,
        )
        if not as_json:
            said = f"{result['steps']} of {settings.steps} steps, {result['tokens_seen']} tokens, loss {result['loss']}"
            out().print(f"{said}: {folder}", markup=False, soft_wrap=True)
            for score in result["scores"][-1:]:  # type: ignore[index]
                out().print(f"held-out questions: {score}", markup=False, soft_wrap=True)
