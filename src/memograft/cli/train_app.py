"""`memograft train gist | mac` and their options. Importing this imports neither torch nor FAISS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memograft.cli.console import out, reporting
from memograft.cli.options import ContextOption, DeviceOption, FormatOption, JsonOption, ModelOption

train_app = typer.Typer(help="Train what a kind of memory needs.", no_args_is_help=True, pretty_exceptions_enable=False)

DataOption = Annotated[
    str,
    typer.Option(
        help="Questions with documents and answers: JSON lines, a file of a public set (SQuAD), or an id of the hub."
    ),
]
OutOption = Annotated[
    Path, typer.Option("--out", help="Folder of the result. An interrupted run with the same options continues.")
]
NOption = Annotated[int | None, typer.Option("--n", min=1, help="Questions to train on; left out, all.")]
HeldOutOption = Annotated[
    str | None, typer.Option(help="Questions to score at each checkpoint, in a file as for --data.")
]
HeldOutNOption = Annotated[int, typer.Option(min=1, help="How many of them.")]
WindowOption = Annotated[int, typer.Option(min=1, help="Tokens of a document at most; longer ones are cut into parts.")]
StepsOption = Annotated[int, typer.Option(min=1, help="Optimiser steps.")]
GroupsOption = Annotated[int, typer.Option(min=1, help="Documents (with their questions) in a step.")]
AccumulateOption = Annotated[int, typer.Option(min=1, help="Passes of a step, each with a part of its documents.")]
QuestionsOption = Annotated[int, typer.Option(min=1, help="Questions about a document in a step, at most.")]
RankOption = Annotated[int, typer.Option(min=1, help="Rank of the LoRA.")]
RateOption = Annotated[float, typer.Option(help="Highest learning rate.")]
WarmupOption = Annotated[float, typer.Option(min=0, max=1, help="Share of the steps in which it rises.")]
OnDocumentsOption = Annotated[bool, typer.Option("--on-documents", help="The LoRA also acts on the texts' own tokens.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of weights and batches.")]
EveryOption = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]
StopAtOption = Annotated[int | None, typer.Option(min=1, help="Stop at this step; a later run continues.")]


@train_app.callback()
def options() -> None:
    """Train what a kind of memory needs."""


@train_app.command()
def gist(
    data: DataOption,
    folder: OutOption,
    model: ModelOption = "tiny",
    format: FormatOption = None,
    context: ContextOption = None,
    n: NOption = None,
    held_out: HeldOutOption = None,
    held_out_n: HeldOutNOption = 200,
    tokens: Annotated[int, typer.Option(min=1, help="Gist tokens for each document (k).")] = 10,
    window: WindowOption = 256,
    steps: StepsOption = 1000,
    groups: GroupsOption = 32,
    accumulate: AccumulateOption = 1,
    questions: QuestionsOption = 4,
    documents: Annotated[
        int, typer.Option(min=1, help="Documents that a question sees at most, with others that distract.")
    ] = 3,
    rank: RankOption = 32,
    learning_rate: RateOption = 1e-3,
    warmup: WarmupOption = 0.03,
    distill: Annotated[
        float,
        typer.Option(min=0, max=1, help="Weight of the KL from the model with the documents in its prompt."),
    ] = 0.0,
    ask: Annotated[
        float, typer.Option(min=0, max=1, help="Weight of a question's token in the loss; an answer's is 1.")
    ] = 0.0,
    on_documents: OnDocumentsOption = False,
    seed: SeedOption = 0,
    start: Annotated[
        Path | None, typer.Option(help="Begin with the weights of this gist of the same model and rank.")
    ] = None,
    every: EveryOption = 100,
    stop_at: StopAtOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train gist tokens: documents as the keys and values of a few tokens. The model stays as it is."""
    with reporting(as_json) as result:
        from memograft.cli.training import learn
        from memograft.memory.gist.train import GistTraining, train

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
        result |= learn(
            train,
            settings,
            title=f"Gist of {tokens} tokens: loss of each step",
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
            _say(result, steps)


@train_app.command()
def mac(
    data: DataOption,
    folder: OutOption,
    model: ModelOption = "tiny",
    format: FormatOption = None,
    context: ContextOption = None,
    n: NOption = None,
    held_out: HeldOutOption = None,
    held_out_n: HeldOutNOption = 100,
    tokens: Annotated[int, typer.Option(min=1, help="Learned tokens for each document (T).")] = 12,
    modulation: Annotated[
        str, typer.Option(help="What is found becomes a prefix of keys and values, or a lora on the last FFN.")
    ] = "prefix",
    window: WindowOption = 256,
    steps: StepsOption = 1000,
    groups: GroupsOption = 32,
    accumulate: AccumulateOption = 1,
    questions: QuestionsOption = 2,
    rank: RankOption = 32,
    blocks: Annotated[int, typer.Option(min=1, help="Blocks of the aggregation network.")] = 4,
    heads: Annotated[int, typer.Option(min=1, help="Heads of its attention; must divide the model's width.")] = 1,
    learning_rate: RateOption = 1e-3,
    warmup: WarmupOption = 0.03,
    stop_gradient: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the documents without gradients, which saves memory.")
    ] = 0.0,
    alone: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the questions that see their own documents only.")
    ] = 0.5,
    others: Annotated[
        int, typer.Option(min=0, help="Documents in a bank about which nothing is asked: more to be told apart.")
    ] = 0,
    shown: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the questions with a page in the prompt too.")
    ] = 0.0,
    imitate: Annotated[
        float, typer.Option(min=0, help="Weight of the distance from the keys and values of a gist, see --start.")
    ] = 0.0,
    point: Annotated[
        float, typer.Option(min=0, help="Weight of the attention that a question's own documents should get.")
    ] = 0.0,
    fitted: Annotated[
        int, typer.Option(min=1, help="Documents by which the networks are fitted to a gist, see --start.")
    ] = 512,
    on_documents: OnDocumentsOption = False,
    seed: SeedOption = 0,
    start: Annotated[Path | None, typer.Option(help="Begin with this MAC, or with the LoRA of this gist.")] = None,
    every: EveryOption = 100,
    stop_at: StopAtOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train MAC: documents as modulations in a bank, from which questions are answered. The model stays as it is."""
    with reporting(as_json) as result:
        from memograft.cli.training import learn
        from memograft.memory.mac.train import MacTraining, train

        settings = MacTraining(
            tokens=tokens,
            modulation=modulation,
            window=window,
            steps=steps,
            groups=groups,
            questions=questions,
            rank=rank,
            blocks=blocks,
            heads=heads,
            learning_rate=learning_rate,
            warmup=warmup,
            stop_gradient=stop_gradient,
            alone=alone,
            others=others,
            shown=shown,
            imitate=imitate,
            point=point,
            fitted=fitted,
            on_documents=on_documents,
            accumulate=accumulate,
            seed=seed,
        )
        result |= learn(
            train,
            settings,
            title=f"MAC of {tokens} tokens: loss of each step",
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
            _say(result, steps)


def _say(result: dict[str, object], steps: int) -> None:
    said = f"{result['steps']} of {steps} steps, {result['tokens_seen']} tokens, loss {result['loss']}"
    out().print(f"{said}: {result['folder']}", markup=False, soft_wrap=True)
    scores = result["scores"]
    if isinstance(scores, list) and scores:
        out().print(f"held-out questions: {scores[-1]}", markup=False, soft_wrap=True)
