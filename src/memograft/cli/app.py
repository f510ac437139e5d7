"""The commands of `memograft` and their options. Importing this imports neither torch nor FAISS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memograft import __version__
from memograft.cli.ask_app import ask
from memograft.cli.console import err, out, print_json, progress_bar, reporting, warn
from memograft.cli.datastore_app import datastore_app
from memograft.cli.export_app import export
from memograft.cli.lm_eval_app import lm_eval
from memograft.cli.mac_app import mac_app
from memograft.cli.memory_app import memory_app
from memograft.cli.migrate_app import migrate_app
from memograft.cli.options import (
    STORE,
    AddressOption,
    ChunkOption,
    ConflictsOption,
    ContextOption,
    ContrastOption,
    CpusOption,
    CubOption,
    FormatOption,
    GateOption,
    GistsOption,
    GpusOption,
    IndexKind,
    JsonOption,
    LengthOption,
    MacsOption,
    ModelOption,
    ProtocolOption,
    QuestionsArgument,
    RankOption,
    RateOption,
    RelevanceOption,
    SetsOption,
    SettingsOption,
    Split,
    StepsOption,
    StoreOption,
    WorkersOption,
)
from memograft.cli.serve_app import keys_app, serve
from memograft.cli.train_app import train_app
from memograft.evaluation.methods import METHODS

app = typer.Typer(
    help="Make a local Hugging Face model memorize the retrieved documents before it answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(ask)
app.command()(serve)
app.command()(export)
app.command(
    "lm-eval",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)(lm_eval)
app.add_typer(datastore_app, name="datastore")
app.add_typer(keys_app, name="keys")
app.add_typer(mac_app, name="mac")
app.add_typer(memory_app, name="memory")
app.add_typer(migrate_app, name="migrate")
app.add_typer(train_app, name="train")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"memograft {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Make a local Hugging Face model memorize the retrieved documents before it answers."""


@app.command()
def index(
    folder: Annotated[Path, typer.Argument(help="Folder with the files, read recursively.")],
    store: StoreOption = STORE,
    kind: Annotated[
        IndexKind | None,
        typer.Option(
            "--index", help="Kind of FAISS index, only for a store with vectors, as Python makes it; left out, its own."
        ),
    ] = None,
    chunk_size: ChunkOption = 600,
    chunk_overlap: Annotated[int, typer.Option(min=0, help="Characters that neighbouring passages may share.")] = 60,
    lock_timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for another writer of the store.")] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Update the vector store from a folder: add new files, replace changed ones, remove deleted ones.

    Reads txt, md, pdf, html, docx, and records in json, jsonl or csv; files of other kinds are reported.
    """
    from memograft.cli.index import counted, index_folder
    from memograft.passages.vector_store import VectorStore

    with reporting(as_json) as result:
        with (
            VectorStore(
                path=store, index=kind.value if kind else None, progress=False, lock_timeout=lock_timeout
            ) as opened,
            progress_bar(not as_json) as bar,
        ):
            task = bar.add_task("reading", total=None)

            def on_file(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            report = index_folder(
                opened, folder, chunk_size=chunk_size, overlap=chunk_overlap, on_file=on_file, without=store
            )
        for failure in report.failed:
            warn(f"not read: {failure['reason']}")
        for part in report.skipped:
            warn(f"partly read: {part['reason']}")
        if report.other_kinds:
            warn(f"not read: {counted(report.other_kinds)}")
        if not as_json:
            out().print(
                f"{report.files} files: {report.added} added, {report.changed} changed, {report.unchanged} unchanged, "
                f"{report.removed} removed, {len(report.failed)} not read; {report.passages} passages in {store}",
                markup=False,
                soft_wrap=True,
            )
        result |= {"store": str(store), **report.as_dict()}


@app.command("memorize")
def memorize_(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders to memorize.", metavar="FILE|FOLDER...")],
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Memorize all files together: folder for the memory, e.g. a PEFT LoRA.")
    ] = None,
    bank: Annotated[
        Path | None,
        typer.Option(help="Memorize each file by itself into this bank; files that it has are not read again."),
    ] = None,
    workers: WorkersOption = 1,
    ray_address: AddressOption = None,
    cpus: CpusOption = 1,
    gpus: GpusOption = 0.0,
    model: ModelOption = "tiny",
    relevance: RelevanceOption = None,
    gate: GateOption = None,
    contrast: ContrastOption = None,
    steps: StepsOption = None,
    learning_rate: RateOption = None,
    rank: RankOption = None,
    settings: SettingsOption = None,
    carry: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Also save the files' keys and values, so that they are not read again: 1 saves all, a larger number "
            "divides their bytes by it.",
        ),
    ] = None,
    train: Annotated[bool, typer.Option(help="Memorize; --no-train only carries keys and values.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Memorize files once and keep the memory, for `memograft ask --memory-folder`, or one memory a file in a bank."""
    with reporting(as_json) as result:
        from memograft.cli.memorize import check_place, memorize, memorize_each
        from memograft.cli.models import carrying, fast_mem
        from memograft.cluster.pool import Pool

        pool = Pool(workers, ray_address, cpus, gpus)
        check_place(out_folder, bank, pool)

        memory = fast_mem(
            settings,
            relevance=relevance,
            gate=gate,
            contrast=contrast,
            steps=steps,
            learning_rate=learning_rate,
            rank=rank,
        )
        carried = carrying(memory if train else None, carry)
        if out_folder is not None:
            result |= memorize(paths, model=model, memory=carried, folder=out_folder, quiet=as_json)
        if bank is not None:
            result |= memorize_each(paths, model=model, memory=carried, bank=bank, pool=pool, quiet=as_json)


@app.command()
def check(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A saved memory, a bank, a gist, a MAC or its bank, a datastore or a vector store.", metavar="FOLDER"
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Verify a folder by its checksums. Prints a line for each damaged file, and exits with code 1 if there is any."""
    with reporting(as_json) as result:
        from memograft.cli.check import check as run

        result |= run(folder, quiet=as_json)
    if result["damaged"]:
        raise typer.Exit(1)


@app.command()
def demo(
    html: Annotated[
        Path | None, typer.Option(help="Write an HTML page with each token's loss before and after.")
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Keep the demo's vector store here; left out, in memory.")] = None,
    model: ModelOption = "tiny",
    relevance: RelevanceOption = None,
    conflicts: ConflictsOption = None,
    gate: GateOption = None,
    contrast: ContrastOption = None,
    steps: StepsOption = None,
    learning_rate: RateOption = None,
    rank: RankOption = None,
    settings: SettingsOption = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Pages to retrieve for a question.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only this many of each kind of question.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer questions on a bundled corpus of fact and fiction, plainly and memorized, and count what changed."""
    with reporting(as_json) as result:
        from memograft.cli.demo import demo as run
        from memograft.cli.models import fast_mem

        memory = fast_mem(
            settings,
            relevance=relevance,
            conflicts=conflicts,
            gate=gate,
            contrast=contrast,
            steps=steps,
            learning_rate=learning_rate,
            rank=rank,
        )
        outcomes, made = run(model=model, memory=memory, store=store, html=html, k=k, limit=limit, quiet=as_json)
        result |= made
        if not as_json:
            from memograft.cli.demo_table import conclusion, tables
            from memograft.cli.outcome import summary

            out().print(tables(outcomes))
            out().print(conclusion(outcomes, summary(outcomes)))
        if html:
            err().print(f"page: {html}", markup=False, soft_wrap=True)


@app.command("eval")
def evaluate(
    questions: QuestionsArgument,
    model: ModelOption = "tiny",
    format: FormatOption = None,
    context: ContextOption = None,
    split: Annotated[
        Split | None, typer.Option(help="Part of the questions; left out, test, or all of your own file.")
    ] = None,
    protocol: ProtocolOption = "plain",
    every_swap: Annotated[
        bool, typer.Option("--every-swap", help="Ask all swaps of a question of NQ-SWAP, not one.")
    ] = False,
    only_known: Annotated[
        list[str] | None,
        typer.Option(help="In this set, ask only questions that the model answers without documents. May be repeated."),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Questions of each set; left out, all.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help=f"One of: {'; '.join(METHODS)}. May be repeated; with none of this, --settings, --gist and --mac, all."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            help='Memorize like this: "steps=4", or "paper, steps=4", or a file of `memograft tune`. May be repeated.'
        ),
    ] = None,
    gist: GistsOption = None,
    mac: MacsOption = None,
    sets: SetsOption = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Differences to this method too, besides plain. May be repeated.")
    ] = None,
    out_folder: Annotated[
        Path, typer.Option("--out", help="Folder for results, from which an interrupted run continues.")
    ] = Path("runs/eval"),
    plot: Annotated[Path | None, typer.Option(help="Draw gain against loss into this .png file.")] = None,
    cub: CubOption = None,
    html: Annotated[Path | None, typer.Option(help="Write a page: tables, intervals, answers side by side.")] = None,
    max_new_tokens: LengthOption = None,
    workers: WorkersOption = 1,
    ray_address: AddressOption = None,
    cpus: CpusOption = 1,
    gpus: GpusOption = 0.0,
) -> None:
    """Ask many questions in several ways and count right answers. The last line of stdout is one JSON object."""
    with reporting(as_json=False) as result:
        from memograft.cli.evaluate import Questions
        from memograft.cli.evaluate import evaluate as run
        from memograft.cluster.pool import Pool

        asked = Questions(
            questions,
            format=format,
            contexts=context or [],
            split=split.value if split else None,
            n=n,
            protocol=protocol,
            every_swap=every_swap,
            sets=sets or [],
            only_known=only_known or [],
        )
        made, table = run(
            asked,
            model=model,
            names=method or [],
            settings=settings or [],
            gists=gist or [],
            macs=mac or [],
            against=against or [],
            folder=out_folder,
            plot=plot,
            cub=cub,
            html=html,
            max_new_tokens=max_new_tokens,
            pool=Pool(workers, ray_address, cpus, gpus),
        )
        result |= made
        typer.echo(table)
        print_json(result)


@app.command()
def tune(
    questions: QuestionsArgument,
    out_file: Annotated[
        Path, typer.Option("--out", help="Write the settings to this .json file, or into this folder.")
    ],
    model: ModelOption = "tiny",
    minutes: Annotated[
        float, typer.Option(help="Time limit of the search; plain, the default and the comparison always run.")
    ] = 10,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of trials, including the default; left out, until the time is up."),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Questions of each set, to tune and to report on.")] = 64,
    format: FormatOption = None,
    context: ContextOption = None,
    protocol: ProtocolOption = "plain",
    sets: SetsOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    folder: Annotated[Path, typer.Option(help="Folder for results, from which an interrupted search continues.")] = (
        Path("runs/tune")
    ),
    max_new_tokens: LengthOption = None,
) -> None:
    """Find settings that suit a model, and write them to a file for --settings or the model's folder.

    They are chosen on the tuning split and reported on the test split. The last line of stdout is one JSON object.
    """
    with reporting(as_json=False) as result:
        from memograft.cli.tune import tune as run

        made, tables = run(
            questions,
            model=model,
            format=format,
            contexts=context or [],
            n=n,
            protocol=protocol,
            sets=sets or [],
            minutes=minutes,
            trials=trials,
            seed=seed,
            folder=folder,
            file=out_file,
            max_new_tokens=max_new_tokens,
        )
        result |= made
        typer.echo(tables)
        print_json(result)
