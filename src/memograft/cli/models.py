"""The engine, memory settings and documents of the commands. Imports torch only when a function is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memograft.cli.console import err
from memograft.documents import Document
from memograft.errors import MemograftError, SettingsError, StoreError

if TYPE_CHECKING:
    from memograft.engine import Engine
    from memograft.memory.base import Memory
    from memograft.memory.fastmem.memory import FastMem
    from memograft.memory.report import MemoryReport
    from memograft.passages.vector_store import Hit
    from memograft.request import Answer


def load_engine(
    model: str,
    device: str | None = None,
    *,
    max_batch: int = 16,
    max_length: int | None = None,
) -> Engine:
    """Load a model's engine, without the output of transformers.

    Raises:
        SettingsError: there is no such model, or it is not a causal language model.
    """
    with err().status(f"loading {model}"):
        from transformers.utils import logging

        from memograft.engine import Engine
        from memograft.model.loading import BUNDLED

        if model in BUNDLED and not (files("memograft") / BUNDLED[model]).is_dir():
            raise SettingsError(f"the bundled model {model!r} is not part of this installation; name another `--model`")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            return Engine.from_pretrained(model, device=device, max_batch=max_batch, max_length=max_length)
        except MemograftError:
            raise
        except (OSError, ValueError, KeyError) as error:
            said = next(iter(str(error).splitlines()), "")
            raise SettingsError(
                '`--model` must be "tiny", "smollm2", a .gguf file, a folder or a Hugging Face id of a causal language '
                f"model, got {model!r} ({said}); check the name"
            ) from error


def fast_mem(settings: Path | None = None, /, **given: Any) -> FastMem:
    """FastMem settings from a file, a preset or the defaults, changed by the given options. None means not given.

    "none" means FastMem's None.
    """
    from memograft.memory.fastmem.memory import PRESETS, FastMem

    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for name, value in changes.items():
        if isinstance(value, str):  # includes enum members
            changes[name] = None if value == "none" else str(value)
    if str(settings) in PRESETS:
        return getattr(FastMem, str(settings))(**changes)  # type: ignore[no-any-return]
    return replace(FastMem.load(settings) if settings else FastMem(), **changes)


def carrying(memory: FastMem | None, ratio: float | None) -> Memory:
    """A memory that also carries the documents' keys and values, divided by a ratio; without training it keeps all."""
    from memograft.memory.compact.memory import Compacted, Kept

    if memory is not None and ratio is None:
        return memory
    return Kept(memory) if ratio in (None, 1) else Compacted(memory, float(ratio or 1))


def retrieve(store: Path, question: str, k: int) -> list[Hit]:
    """The k passages of a store closest to a question.

    Raises:
        StoreError: there is no store, or it cannot be read.
    """
    from memograft.passages.vector_store import VectorStore

    if not store.exists():
        raise StoreError(
            f"there is no store at {store}; make one with `memograft index FOLDER`, or name it with `--store`"
        )
    with VectorStore.open(store, read_only=True) as opened:
        return opened.search(question, k=k)


def title(document: Document) -> str:
    """The name of a document in tables."""
    return str(document.metadata.get("title") or document.id)


def document_json(document: Document, score: float | None = None) -> dict[str, object]:
    """JSON values of a document."""
    scored = {} if score is None else {"score": round(score, 6)}
    return {"id": document.id, "title": title(document), "source": document.metadata.get("source"), **scored}


def memory_json(report: MemoryReport) -> dict[str, object]:
    """JSON values of a memory report, without its per-token losses."""
    return {
        "id": report.id,
        "steps": report.steps,
        "loss_before": report.loss_before,
        "loss_after": report.loss_after,
        "kl": report.kl,
        "rolled_back": report.rolled_back,
        "reason": report.reason,
        "documents": list(report.documents),
        "left_out": list(report.left_out),
        "disagree": [list(pair) for pair in report.disagree],
        "seconds": report.seconds,
        "settings": dict(report.settings),
    }


def answer_json(answer: Answer, seconds: float) -> dict[str, object]:
    """JSON values of an answer."""
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "seconds": seconds,
        "timings": asdict(answer.timings),
        "usage": asdict(answer.usage),
        "memory": memory_json(answer.memory) if answer.memory else None,
        "dropped": [d.id for d in answer.dropped],
        "truncated": [d.id for d in answer.truncated],
    }


def warnings_of(answers: Sequence[Answer]) -> list[str]:
    """Messages about documents that were left out or shortened, and about memories that were rolled back."""
    said = []
    for answer in answers:
        said += [f"{d.id} did not fit the model's window and was left out" for d in answer.dropped]
        said += [f"only the beginning of {d.id} fitted the model's window" for d in answer.truncated]
        if answer.memory and answer.memory.rolled_back and answer.memory.reason:
            said.append(answer.memory.reason)
    return list(dict.fromkeys(said))
