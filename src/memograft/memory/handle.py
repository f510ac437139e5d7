"""`MemoryHandle`: a memory that was made once and is kept: its adapter, its documents, and their keys and values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memograft.backbone import Backbone
from memograft.documents import Document
from memograft.errors import MemoryFormatError
from memograft.memory import folder
from memograft.memory.adapter import Adapter
from memograft.memory.fastmem import FastMem
from memograft.memory.report import MemoryReport
from memograft.prefill import Prefix

__all__ = ["MemoryHandle", "fingerprint"]


@dataclass(frozen=True)
class MemoryHandle:
    """A memory to answer with again and again: nothing is memorized anew, and its documents are not prefilled anew.

    Attributes:
        id: content hash of model, settings and documents.
        documents: what was memorized; they stand in the prompt unless a request brings its own.
        settings: how.
        report: what it did.
        adapter: its weights; None if there was nothing to memorize or it was rolled back.
        prefix: keys and values of the documents in the prompt.
        fingerprint: of the model it belongs to.
        base_model: the model's name or folder, for whoever loads the memory with PEFT.
    """

    id: str
    documents: tuple[Document, ...]
    settings: FastMem
    report: MemoryReport
    adapter: Adapter | None
    prefix: Prefix | None
    fingerprint: str
    base_model: str

    @classmethod
    def new(
        cls,
        backbone: Backbone,
        documents: Sequence[Document],
        settings: FastMem,
        report: MemoryReport,
        adapter: Adapter | None,
        prefix: Prefix | None,
    ) -> MemoryHandle:
        """A handle whose id says what it was made of."""
        model = fingerprint(backbone)
        content = json.dumps([model, asdict(settings), [d.text for d in documents]], sort_keys=True)
        id = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        base_model = str(getattr(backbone.model.config, "_name_or_path", "") or "")
        return cls(id, tuple(documents), settings, replace(report, id=id), adapter, prefix, model, base_model)

    def save(self, path: str | Path, backbone_config: Any = None) -> Path:
        """Write a PEFT LoRA folder with a memograft.json beside it; whole or not at all. Returns the folder.

        Raises:
            MemoryFormatError: there are no weights to save, or the folder holds something else.
        """
        if self.adapter is None:
            raise MemoryFormatError(f"memory {self.id} has no weights to save: {self.report.reason}; memorize again")
        settings = {k: v for k, v in asdict(self.settings).items()}
        about = {
            "id": self.id,
            "fingerprint": self.fingerprint,
            "settings": settings,
            "documents": [{"id": d.id, "text": d.text, "metadata": dict(d.metadata)} for d in self.documents],
            "report": asdict(self.report),
        }
        return folder.write(Path(path), self.adapter, about, self.base_model)

    @classmethod
    def load(cls, path: str | Path, backbone: Backbone) -> MemoryHandle:
        """Read a folder written by `save` for use with this model.

        Raises:
            MemoryFormatError: the folder is damaged, incomplete or of another model.
        """
        adapter, about = folder.read(Path(path), backbone.device)
        model = fingerprint(backbone)
        if about["fingerprint"] != model:
            raise MemoryFormatError(
                f"the memory in {path} was made for another model (fingerprint {about['fingerprint']}, this model's is "
                f"{model}); load it with the model it was made for, or memorize again"
            )
        settings = dict(about["settings"])
        settings["betas"] = tuple(settings["betas"])
        return cls(
            id=about["id"],
            documents=tuple(Document(**d) for d in about["documents"]),
            settings=FastMem(**settings),
            report=_report(about["report"]),
            adapter=adapter,
            prefix=None,
            fingerprint=model,
            base_model=str(getattr(backbone.model.config, "_name_or_path", "") or ""),
        )


def _report(fields: Mapping[str, Any]) -> MemoryReport:
    return MemoryReport(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


@torch.no_grad()
def fingerprint(backbone: Backbone) -> str:
    """16 hex digits of the shapes and of a sample of the weights that a memory of this model relies on."""
    digest = hashlib.sha256()
    for name, module in sorted(backbone.projections.items()):
        digest.update(name.encode())
        for weight in (module.weight, backbone.head.weight):
            digest.update(_sample(weight))  # type: ignore[arg-type]
    return digest.hexdigest()[:16]


def _sample(weight: Tensor) -> bytes:
    flat = weight.detach().flatten()
    step = max(1, flat.numel() // 512)
    return f"{tuple(weight.shape)}".encode() + flat[::step].float().cpu().numpy().round(3).tobytes()
