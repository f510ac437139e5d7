"""`memorize_all`: memorize many documents into one bank, in this process or by workers of Ray.

    documents ──> without repeated texts ──> batches ──> workers ──> the bank's folder
                                                           what is there is not read again

What the bank has is the only record of what was done: after an interruption, the same call does the rest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from tqdm import tqdm

from memograft.cluster.pool import Batch, Pool, Row, there
from memograft.documents import Document, as_documents
from memograft.engine import Engine
from memograft.errors import SettingsError
from memograft.memory.bank import Bank
from memograft.memory.base import Memory
from memograft.memory.mac.bank import MacBank
from memograft.memory.report import MemoryReport

__all__ = ["Memorized", "Outcome", "memorize_all"]

Status = Literal["made", "there", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What became of a document.

    Attributes:
        document: its id.
        status: "made", "there" (the bank had it, also from a worker that died afterwards) or "failed".
        memory: the id of its memory in a `Bank`; "" for a `MacBank`.
        reason: why it failed, or why a memory was kept without weights; "" otherwise.
    """

    document: str
    status: Status
    memory: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Memorized:
    """The result of `memorize_all`.

    Attributes:
        outcomes: one for each document, in their order.
        seconds: of the whole call, with loading models.
    """

    outcomes: tuple[Outcome, ...]
    seconds: float

    def count(self, status: Status) -> int:
        """How many documents have this status."""
        return sum(outcome.status == status for outcome in self.outcomes)


def memorize_all(
    documents: Iterable[Document | str],
    bank: Bank | MacBank | str | Path,
    *,
    model: str = "tiny",
    memory: Memory | None = None,
    pool: Pool | None = None,
    device: str | None = None,
    batch: int | None = None,
    progress: bool = True,
) -> Memorized:
    """Memorize each document by itself into a bank's folder. Call it again after an interruption: it does the rest.

    Args:
        documents: any number; a `VectorStore` is its passages.
        bank: a folder, a `Bank` with one, or a `MacBank`. All workers must see the folder under its path. Size limits
            of a `Bank` do not hold meanwhile; call its `gc` afterwards.
        model: what each worker loads, as `Engine.from_pretrained` takes it.
        memory: of a `Bank`: FastMem, also within Kept, or Compacted. None: FastMem(). Not for a `MacBank`.
        pool: the workers; None: this process alone.
        device: of the model; None: a GPU if the worker has one, else the CPU.
        batch: documents that are memorized together; None: 16, and 256 for a `MacBank`, which is a commit.
        progress: whether to show a bar.

    Raises:
        SettingsError: the bank has no folder, a setting does not fit it, or a document's metadata is not JSON.
        MissingExtraError: there are several workers, and Ray is not installed.
        MemograftError: a worker of Ray failed, with its reason; without Ray, whatever loading the model raises.
    """
    began, given, pool = time.perf_counter(), as_documents(documents), pool or Pool()
    if batch is not None and batch < 1:
        raise SettingsError(f"`batch` must be at least 1 document, got {batch}")
    modulates = isinstance(bank, MacBank)
    if isinstance(bank, MacBank):
        if memory is not None:
            raise SettingsError(f"a MacBank has modulations of documents, so `memory` must be None, got {memory!r:.80}")
        folder, new = bank.path, {document.id: document for document in bank.missing(given)}
        keys = [document.id for document in given]
    else:
        place = bank.folder if isinstance(bank, Bank) else Path(bank)
        if place is None:
            raise SettingsError(f"workers share a bank's folder, and {bank!r} has none; pass Bank(FOLDER)")
        folder, keys = place, [document.text for document in given]
        new = {}
        for document in given:
            new.setdefault(document.text, document)
        Bank(folder)  # makes the folder, or says why it cannot
    work = _Modulator if modulates else _Memorizer
    made_of: dict[str, object] = {"model": there(model), "bank": str(folder.resolve()), "device": device}
    batch = batch or (256 if modulates else 16)
    made_of |= {} if modulates else {"memory": memory, "batch": batch}
    number = {key: n for n, key in enumerate(new)}
    rows = [_row(n, document) for n, document in enumerate(new.values())]
    found: dict[int, Row] = {}
    with tqdm(total=len(rows), desc="documents", unit="", disable=not progress) as bar:
        for row in pool.results(work, made_of, rows, batch) if rows else ():
            found[int(row["n"])] = row
            bar.update()
    outcomes = []
    for document, key in zip(given, keys, strict=True):
        row = found[number[key]] if key in number else {"status": "there", "memory": "", "reason": ""}
        status = cast(Status, row["status"])
        outcomes.append(Outcome(document.id, status, str(row["memory"]), str(row["reason"])))
    return Memorized(tuple(outcomes), time.perf_counter() - began)


class _Memorizer:
    """A worker that memorizes documents into the folder of a `Bank`."""

    def __init__(self, model: str, bank: str, device: str | None, memory: Memory | None, batch: int) -> None:
        kept = Bank(bank, memory_bytes=1, prefix_bytes=0)  # nothing is asked here, so nothing is held
        self._engine = Engine.from_pretrained(model, device=device, max_batch=batch, bank=kept)
        self._memory = memory

    def __call__(self, batch: Batch) -> Batch:
        reports = self._engine.memorize_each(_documents(batch), self._memory, return_exceptions=True)
        told = [_told(report) for report in reports]
        return {"n": batch["n"], **{name: [row[name] for row in told] for name in ("status", "memory", "reason")}}


class _Modulator:
    """A worker that adds documents to a `MacBank`."""

    def __init__(self, model: str, bank: str, device: str | None) -> None:
        self._engine = Engine.from_pretrained(model, device=device)
        self._bank = MacBank(bank, lock_timeout=600)  # other workers commit meanwhile

    def __call__(self, batch: Batch) -> Batch:
        documents = _documents(batch)
        new = {document.id for document in self._bank.missing(documents)}
        self._bank.add(self._engine, documents, progress=False)
        status = ["made" if document.id in new else "there" for document in documents]
        return {"n": batch["n"], "status": status, "memory": [""] * len(status), "reason": [""] * len(status)}


def _row(n: int, document: Document) -> Row:
    try:
        metadata = json.dumps(dict(document.metadata))
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"the documents' metadata must be JSON to be saved, that of {document.id!r} is not ({error}); convert it "
            "to text"
        ) from error
    return {"n": n, "id": document.id, "text": document.text, "metadata": metadata}


def _documents(batch: Batch) -> list[Document]:
    rows = zip(batch["text"], batch["id"], batch["metadata"], strict=True)
    return [Document(str(text), str(id), json.loads(str(metadata))) for text, id, metadata in rows]


def _told(report: MemoryReport | Exception) -> Row:
    if isinstance(report, Exception):
        return {"status": "failed", "memory": "", "reason": str(report)}
    status = "failed" if not report.id else "there" if report.reused else "made"
    return {"status": status, "memory": report.id, "reason": report.reason or ""}
