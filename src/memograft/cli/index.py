"""Index a folder of files into a vector store: add new files, replace changed ones, and remove deleted ones.

A passage's id is the file's path below the folder with the passage's number, "guides/start.md#0".
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from memograft.documents import Document
from memograft.errors import MissingExtraError, SettingsError
from memograft.passages.reading import SUFFIXES, Text, find_files, read_file, split
from memograft.passages.records import RECORDS, read_records
from memograft.passages.vector_store import VectorStore

_BATCH = 256  # passages per write


@dataclass
class Indexed:
    """The result of indexing: counts of files, and of the passages in the store.

    Attributes:
        failed: files that could not be read, with the reason.
        skipped: files in which some records have no text, with these.
        other_kinds: files of unsupported kinds, without hidden ones.
    """

    files: int = 0
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    passages: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    other_kinds: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """JSON values."""
        return asdict(self)


@dataclass
class _Known:
    """A file as stored."""

    root: str
    digest: str
    ids: set[str] = field(default_factory=set)


def index_folder(
    store: VectorStore,
    folder: Path,
    *,
    chunk_size: int = 600,
    overlap: int = 60,
    on_file: Callable[[int, int], None] | None = None,
    without: Path | None = None,
) -> Indexed:
    """Update the store to the files of the folder; `on_file` is called with the number of files done and of all.

    If a file cannot be read, its old passages stay, and it is reported. Files in the folder `without`, the store's own,
    are left out.

    Raises:
        SettingsError: no file was found or could be read, or the store has passages of another folder.
    """
    if not folder.is_dir():
        raise SettingsError(f"`FOLDER` must be a folder, got {folder}; check the path")
    split("", chunk_size, overlap)  # checks the sizes before anything is read
    root = str(folder.resolve())
    paths, others = _files(folder, without)
    if not paths:
        raise SettingsError(
            f"{folder} holds no txt, md, pdf, html, docx, json, jsonl or csv files; name another folder"
        )
    known = _known(store, root)
    report = Indexed(files=len(paths), other_kinds=others)
    fresh: list[Document] = []
    stale: set[str] = set()
    for done, path in enumerate(paths):
        if on_file:
            on_file(done, len(paths))
        source = path.relative_to(folder).as_posix()
        before = known.pop(source, None)
        try:
            digest = _digest(path, chunk_size, overlap)
            if before and before.digest == digest:
                report.unchanged += 1
                continue
            texts, skipped = _texts(path)
            passages = _passages(path, texts, source, root, digest, chunk_size, overlap)
        except (SettingsError, MissingExtraError, OSError) as error:
            report.failed.append({"file": source, "reason": str(error)})
            continue
        if skipped:
            report.skipped.append({"file": source, "reason": f"{path}: {skipped}"})
        report.changed += before is not None
        report.added += before is None
        stale |= (before.ids if before else set()) - {p.id for p in passages}
        fresh += passages
        if len(fresh) >= _BATCH:
            store.add(fresh)
            fresh = []
    if on_file:
        on_file(len(paths), len(paths))
    if len(report.failed) == len(paths):
        raise SettingsError(f"none of the {len(paths)} files could be read; the first: {report.failed[0]['reason']}")
    store.add(fresh)
    report.removed = len(known)
    store.delete(ids=sorted(stale.union(*(file.ids for file in known.values()))))
    report.passages = len(store)
    return report


def counted(files: Sequence[str]) -> str:
    """Summarise unsupported files for display: how many of each kind, and the first of each.

    >>> counted(["a.png", "b.png", "c.xlsx"])
    '3 files of other kinds: 2 png (a.png, ...), 1 xlsx (c.xlsx)'
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for file in files:
        kinds[Path(file).suffix.lower().lstrip(".") or "without suffix"].append(file)
    said = (f"{len(f)} {kind} ({f[0]}{', ...' if len(f) > 1 else ''})" for kind, f in sorted(kinds.items()))
    return f"{len(files)} files of other kinds: {', '.join(said)}"


def _known(store: VectorStore, root: str) -> dict[str, _Known]:
    """The stored files of this folder. If their folder has been moved here, they belong to this one."""
    files: dict[str, dict[str, _Known]] = defaultdict(dict)  # root -> source -> file
    for document in store:
        about = {name: str(value) for name, value in document.metadata.items()}
        if not {"source", "root", "digest"} <= set(about):
            continue  # added by another program
        file = files[about["root"]].setdefault(about["source"], _Known(about["root"], about["digest"]))
        file.ids.add(document.id)
        if file.digest != about["digest"]:
            file.digest = ""  # an interrupted run left passages of two versions
    others = [r for r in files if r != root]
    if others and (here := next((r for r in others if Path(r).is_dir()), None)):
        raise SettingsError(
            f"the store holds the passages of the folder {here}, got the folder {root}; give each folder a `--store` "
            "of its own, or index the folder that holds both"
        )
    mine: dict[str, _Known] = {}
    for name in [*others, root]:
        mine |= files[name]
    return mine


def _digest(path: Path, chunk_size: int, overlap: int) -> str:
    """A hash of the file's bytes and of how it is split."""
    return hashlib.sha256(f"1 {chunk_size} {overlap} ".encode() + path.read_bytes()).hexdigest()[:32]


def _files(folder: Path, without: Path | None) -> tuple[list[Path], list[str]]:
    """The files to read, and the names of files of other kinds."""
    own = without.resolve() if without is not None else None
    files = [path for path in find_files([folder], None) if own not in path.resolve().parents]
    known = SUFFIXES | RECORDS
    others = [path.relative_to(folder).as_posix() for path in files if path.suffix.lower() not in known]
    return [path for path in files if path.suffix.lower() in known], others


def _texts(path: Path) -> tuple[tuple[Text, ...], str]:
    """The texts of a file, and a message about records without text."""
    if path.suffix.lower() in RECORDS:
        records = read_records(path)
        return records.texts, records.skipped
    return (read_file(path),), ""


def _passages(
    path: Path, texts: Sequence[Text], source: str, root: str, digest: str, chunk_size: int, overlap: int
) -> list[Document]:
    about = {"source": source, "root": root, "digest": digest}
    markdown = path.suffix.lower() in (".md", ".markdown")
    chunks = [(text, chunk) for text in texts for chunk in split(text.text, chunk_size, overlap, markdown=markdown)]
    return [
        Document(chunk, f"{source}#{n}", {**about, "title": text.title, "chunk": n})
        for n, (text, chunk) in enumerate(chunks)
    ]
