"""`memograft memorize`: memorize files together and save the memory as a PEFT folder, or each by itself into a bank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from memograft.cli.console import out, warn
from memograft.cli.models import document_json, load_engine, memory_json
from memograft.documents import Document
from memograft.errors import MissingExtraError, SettingsError
from memograft.passages.reading import find_files, read_file

if TYPE_CHECKING:
    from memograft.cluster.pool import Pool
    from memograft.memory.base import Memory


def memorize(paths: Sequence[Path], *, model: str, memory: Memory, folder: Path, quiet: bool) -> dict[str, object]:
    """Memorize whole files together, save the memory, and return JSON values of what it did.

    Raises:
        SettingsError: a named file cannot be read, or no file in the folders can.
        PromptTooLongError: together they do not fit the model's window.
    """
    documents, failed = documents_of(paths)
    with load_engine(model) as engine:
        handle = engine.memorize(documents, memory, progress=not quiet)
        handle.save(folder)
    report = handle.report
    for failure in failed:
        warn(f"not read: {failure['reason']}")
    if not quiet:
        what = f"loss {report.loss_before:.3f} -> {report.loss_after:.3f} nats per token, KL {report.kl:.3f}"
        what = f"{what}, {report.seconds:.2f} s" if report.losses else report.reason or "nothing was trained"
        line = f"memorized {len(documents)} documents: {what}; saved in {folder}"
        out().print(Text(line), soft_wrap=True)
    return {
        "folder": str(folder),
        "model": model,
        "documents": [document_json(d) for d in documents],
        "failed": failed,
        "memory": memory_json(report),
    }


def check_place(out_folder: Path | None, bank: Path | None, pool: Pool) -> None:
    """Refuse options that say neither where the memory goes nor who makes it.

    Raises:
        SettingsError: there is no place, or several workers and no bank.
    """
    if out_folder is None and bank is None:
        raise SettingsError(
            "`memograft memorize` needs a place, got none; pass --out FOLDER for one memory of all files, or --bank "
            "FOLDER for one of each"
        )
    if bank is None and not pool.alone:
        raise SettingsError(
            f"workers share a bank, got {pool.workers} of them and no bank; pass --bank FOLDER, or leave --workers out"
        )


def memorize_each(
    paths: Sequence[Path], *, model: str, memory: Memory, bank: Path, pool: Pool, quiet: bool
) -> dict[str, object]:
    """Memorize each file by itself into a bank, and return JSON values of what was done.

    Raises:
        SettingsError: a named file cannot be read, or no file in the folders can.
    """
    from memograft.cluster.ingest import memorize_all

    documents, failed = list[Document](), list[dict[str, str]]()
    for path in paths:
        read, unread = documents_of([path], lambda file, path=path: id_in(file, path))  # type: ignore[misc]
        documents += read
        failed += unread
    done = memorize_all(documents, bank, model=model, memory=memory, pool=pool, progress=not quiet)
    not_made = [each for each in done.outcomes if each.status == "failed"]
    failed += [{"file": each.document, "reason": each.reason} for each in not_made]
    for failure in failed:
        warn(f"not memorized: {failure['file']}: {failure['reason']}")
    made, there = done.count("made"), done.count("there")
    if not quiet:
        out().print(
            Text(f"memorized {made} documents, {there} were there, {len(failed)} failed; {bank}, {done.seconds:.1f} s"),
            soft_wrap=True,
        )
    return {
        "bank": str(bank),
        "model": model,
        "workers": pool.workers,
        "made": made,
        "there": there,
        "failed": failed,
        "seconds": round(done.seconds, 2),
    }


def id_in(file: Path, argument: Path) -> str:
    """A file's id: its path in the folder that was named, or its name."""
    return file.relative_to(argument).as_posix() if argument.is_dir() else file.name


def documents_of(
    paths: Sequence[Path], id: Callable[[Path], str] = lambda path: path.name
) -> tuple[list[Document], list[dict[str, str]]]:
    """Whole files as documents with these ids, and files in folders that cannot be read, with the reason.

    Raises:
        SettingsError: a named file cannot be read, or no file in the folders can.
    """
    documents, failed = [], []
    for path in find_files(paths):
        try:
            text = read_file(path)
        except (SettingsError, MissingExtraError) as error:
            if path in paths:
                raise
            failed.append({"file": str(path), "reason": str(error)})
            continue
        documents.append(Document(text.text, id(path), {"title": text.title, "source": path.name}))
    if not documents:
        raise SettingsError(
            failed[0]["reason"] if failed else "the folders hold no txt, md, pdf, html or docx files; name other ones"
        )
    return documents, failed
