"""`memograft ask` and its options. Importing this loads neither torch nor FAISS; running it does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memograft.cli.console import reporting
from memograft.cli.options import (
    STORE,
    CadOption,
    ConflictsOption,
    ContrastOption,
    DeviceOption,
    DolaOption,
    GateOption,
    JsonOption,
    ModelOption,
    RankOption,
    RateOption,
    RelevanceOption,
    SettingsOption,
    StepsOption,
)

__all__ = ["ask"]


def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    store: Annotated[
        Path | None, typer.Option(help=f"Folder of the vector store; left out, {STORE}.", show_default=False)
    ] = None,
    model: ModelOption = "tiny",
    k: Annotated[int, typer.Option("-k", min=0, help="Passages to retrieve; 0 for an answer without any.")] = 3,
    plain: Annotated[bool, typer.Option("--plain", help="Only the plain answer.")] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Only the memorized answer.")] = False,
    memory_folder: Annotated[
        Path | None, typer.Option(help="Answer with a memory saved by `memograft memorize`; nothing is retrieved.")
    ] = None,
    gist: Annotated[
        Path | None,
        typer.Option(help="Answer from gist tokens, trained by `memograft train gist`, instead of memorizing."),
    ] = None,
    refine: Annotated[
        int, typer.Option(min=0, help="Steps that fit each document's gist to the document, with --gist; such as 60.")
    ] = 0,
    mac: Annotated[
        Path | None, typer.Option(help="Answer from this bank of `memograft mac add`, instead of memorizing.")
    ] = None,
    datastore: Annotated[
        Path | None, typer.Option(help="Use this datastore, a folder of `memograft datastore build`.")
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Weight of the datastore against the model; left out, 0.3, which decides close calls."
        ),
    ] = None,
    relevance: RelevanceOption = None,
    conflicts: ConflictsOption = None,
    gate: GateOption = None,
    contrast: ContrastOption = None,
    cad: CadOption = None,
    dola: DolaOption = None,
    steps: StepsOption = None,
    learning_rate: RateOption = None,
    rank: RankOption = None,
    settings: SettingsOption = None,
    device: DeviceOption = None,
    temperature: Annotated[float, typer.Option(min=0, help="Temperature of sampling; 0 is greedy.")] = 0.0,
    min_p: Annotated[
        float,
        typer.Option(min=0, max=1, help="Least probability of a sampled token, as a share of the likeliest one's."),
    ] = 0.0,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(help="Above 1, tokens that occurred before become less likely; left out, the model's own."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampled answers repeatable.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the answer at most.")] = 128,
    stream: Annotated[bool, typer.Option("--stream", help="Print each answer as it is generated.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write an HTML page with each answer's sources, and what was memorized.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question from the store, plainly and with the documents memorized."""
    if stream and as_json:
        raise typer.BadParameter("a stream is not one JSON object; leave --stream or --json out")
    if weight is not None and not datastore:
        raise typer.BadParameter("--weight needs a datastore, got none; add --datastore FOLDER")
    given = {"relevance": relevance, "conflicts": conflicts, "gate": gate, "contrast": contrast}
    given |= {"steps": steps, "learning_rate": learning_rate, "rank": rank}
    chosen = [n for n, value in {**given, "settings": settings}.items() if value is not None]
    if memory_folder and (named := [f"--{n.replace('_', '-')}" for n in chosen]):
        raise typer.BadParameter(f"a saved memory has its own settings, got {', '.join(named)}; leave them out")
    if gist and (named := [f"--{n.replace('_', '-')}" for n in chosen] + ["--memory-folder"] * bool(memory_folder)):
        raise typer.BadParameter(f"gist tokens are not memorized, got {', '.join(named)}; leave them or --gist out")
    if refine and not gist:
        raise typer.BadParameter(f"--refine needs a gist, got {refine} without; add --gist FOLDER")
    if mac and (named := [f"--{n.replace('_', '-')}" for n in chosen] + ["--gist"] * bool(gist)):
        raise typer.BadParameter(f"nothing is memorized with --mac, got {', '.join(named)}; leave them or --mac out")
    if mac and memory_folder:
        raise typer.BadParameter("a saved memory has its own settings, got --mac; leave --mac or --memory-folder out")
    ways = [way for way, wanted in (("plain", plain or not memory), ("memorized", memory or not plain)) if wanted]
    with reporting(as_json) as result:
        from memograft.cli.ask import ask as run
        from memograft.cli.models import fast_mem
        from memograft.decoding.cad import contrasts
        from memograft.errors import SettingsError
        from memograft.memory.gist.memory import Gist
        from memograft.memory.mac.memory import Mac

        instead = Mac(str(mac)) if mac else Gist(str(gist), refine=refine) if gist else None
        memorizes = instead or fast_mem(settings, **given)
        if cad is not None and memorizes.own_cad and not memory_folder:
            raise SettingsError(f"the settings have context-aware decoding, got --cad {cad} too; leave one of them out")
        result |= run(
            question,
            model=model,
            store=store,
            k=k,
            memory=memorizes,
            memory_folder=memory_folder,
            datastore=datastore,
            weight=weight,
            contrasts=contrasts(cad, dola),  # type: ignore[arg-type]
            ways=ways,
            device=device,
            sampling={
                "max_new_tokens": max_new_tokens,
                "temperature": temperature,
                "min_p": min_p,
                "repetition_penalty": repetition_penalty,
                "seed": seed,
            },
            stream=stream,
            html=html,
            quiet=as_json,
        )
