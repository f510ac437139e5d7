"""`MemoryHandle`: a memory that is kept, with its adapter, its documents and their keys and values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from memograft.documents import Document
from memograft.errors import MemoryFormatError, SettingsError
from memograft.memory import folder
from memograft.memory.base import Memory, Model
from memograft.memory.report import MemoryReport
from memograft.model.adapter import Adapter
from memograft.model.backbone import Backbone, linear_shape
from memograft.model.carried import Carried
from memograft.model.identity import stated
from memograft.model.kv import Segment
from memograft.prompt.builder import Prompt
from memograft.storage.disk import told

__all__ = ["MemoryHandle", "fingerprint"]


@dataclass(frozen=True, eq=False)
class MemoryHandle:
    """A memory to answer many requests with. Nothing is trained again, and its documents are not prefilled again.

    Attributes:
        id: hash of what determines it: model, training settings, and the documents with their place in the prompt.
        documents: the memorized documents. They are in the prompt, unless a request has documents of its own.
        settings: the settings it was made with.
        report: what memorizing did.
        adapter: its weights; None if there was nothing to memorize or it was rolled back.
        segment: keys and values of the documents in the prompt, until the process ends.
        carried: those that its kind of memory keeps instead, also in a folder.
        fingerprint: of the model it belongs to.
        base_model: the model's name or folder, for loading the memory with PEFT.
        fan_in_fan_out: whether the model stores these weights transposed (GPT-2's Conv1D); PEFT needs to know.
    """

    id: str
    documents: tuple[Document, ...]
    settings: Memory
    report: MemoryReport
    adapter: Adapter | None
    segment: Segment | None
    fingerprint: str
    base_model: str
    fan_in_fan_out: bool = False
    carried: Carried | None = None

    @classmethod
    def new(
        cls,
        model: Model,
        id: str,
        documents: Sequence[Document],
        memory: Memory,
        adapter: Adapter | None,
        report: MemoryReport | None,
        segment: Segment | None = None,
        carried: Carried | None = None,
    ) -> MemoryHandle:
        """Make the handle of a new memory; `id` is its `content_id`."""
        report, peft = replace(report or MemoryReport(), id=id), _for_peft(model.backbone)
        return cls(id, tuple(documents), memory, report, adapter, segment, model.fingerprint, *peft, carried)

    def segment_of(self, backbone: Backbone, prompt: Prompt) -> Segment | None:
        """The keys and values, if the prompt begins with exactly their tokens."""
        kept = self.carried or self.segment
        if kept is None or prompt.ids[: len(kept.ids)] != kept.ids:
            return None
        return kept.segment(backbone) if isinstance(kept, Carried) else kept

    @property
    def nbytes(self) -> int:
        """Size in bytes of its weights, and of the keys and values that it keeps."""
        pairs = () if self.adapter is None else (*self.adapter.lora_a.values(), *self.adapter.lora_b.values())
        return sum(weight.nbytes for weight in pairs) + (self.carried.nbytes if self.carried is not None else 0)

    @property
    def kept(self) -> MemoryHandle:
        """Itself."""
        return self

    def resolved(self, _own: Mapping[str, object] | None = None) -> MemoryHandle:
        """Itself: its settings have no "auto"."""
        return self

    def check(self, _backbone: Backbone, fingerprint: str) -> None:
        """Refuse a model that it was not made for.

        Raises:
            SettingsError: it was made for another model.
        """
        if self.fingerprint != fingerprint:
            raise SettingsError(
                f"memory {self.id} was made for another model (fingerprint {self.fingerprint}, this model's is "
                f"{fingerprint}); memorize the documents with this engine"
            )

    def save(self, path: str | Path) -> Path:
        """Write a PEFT LoRA folder with a memograft.json, atomically, and return the folder.

        A memory of a kind that trains nothing is the memograft.json alone.

        Raises:
            MemoryFormatError: there are no weights to save, the folder has other content or cannot be written, or a
                document's metadata is not JSON.
        """
        if self.adapter is None and self.carried is None and self.settings.trains:
            raise MemoryFormatError(f"memory {self.id} has no weights to save: {self.report.reason}; memorize again")
        return self.keep(path)

    def keep(self, path: str | Path) -> Path:
        """As `save`, but also without weights: a bank keeps the result of a memory that was rolled back.

        Raises:
            MemoryFormatError: as `save` does.
        """
        about = {
            "id": self.id,
            "fingerprint": self.fingerprint,
            "settings": self.settings.to_json(),
            "documents": [{"id": d.id, "text": d.text, "metadata": dict(d.metadata)} for d in self.documents],
            "report": asdict(self.report),
        }
        with told(path, MemoryFormatError, "written"):
            return folder.write(
                Path(path), self.adapter, self.carried, about, self.base_model, fan_in_fan_out=self.fan_in_fan_out
            )

    @classmethod
    def load(cls, path: str | Path, backbone: Backbone) -> MemoryHandle:
        """Read a folder written by `save` for use with this model.

        Raises:
            MemoryFormatError: the folder is damaged, incomplete or of another model, its kind of memory is not
                imported, or a weight is not finite.
        """
        with told(path, MemoryFormatError, "read"):
            adapter, carried, about = folder.read(Path(path), backbone.device, backbone.model.dtype)
        model = fingerprint(backbone)
        if about["fingerprint"] != model:
            raise MemoryFormatError(
                f"the memory in {path} was made for another model (fingerprint {about['fingerprint']}, this model's is "
                f"{model}); load it with the model it was made for, or memorize again"
            )
        try:
            documents, settings, report = _parsed(about)
        except (TypeError, KeyError, ValueError, AttributeError, SettingsError) as e:
            raise folder.damaged(Path(path) / folder.ABOUT, e) from e
        if adapter is not None and (reason := _misfit(adapter, backbone)):
            raise MemoryFormatError(f"the weights in {path} do not fit this model: {reason}; save the memory again")
        peft = _for_peft(backbone)
        return cls(about["id"], documents, settings, report, adapter, None, model, *peft, carried)


def _parsed(about: Mapping[str, Any]) -> tuple[tuple[Document, ...], Memory, MemoryReport]:
    settings = Memory.from_json(about["settings"])
    report = _tuples(about["report"])
    return tuple(Document(**d) for d in about["documents"]), settings, MemoryReport(**report)


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Turn lists into tuples, which JSON does not have."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


def _misfit(adapter: Adapter, backbone: Backbone) -> str | None:
    """Why the adapter cannot be applied, if it cannot."""
    if adapter.lora_a.keys() != adapter.lora_b.keys() or not adapter.lora_a:
        return "a projection lacks one of its two factors"
    for name, a in adapter.lora_a.items():
        module, b = backbone.projections.get(name), adapter.lora_b[name]
        if module is None:
            return f"it has no projection {name}"
        inside, out = linear_shape(module) or (0, 0)
        if a.shape != (adapter.rank, inside) or b.shape != (out, adapter.rank):
            return f"{name} has factors of shapes {tuple(a.shape)} and {tuple(b.shape)}"
    return None


def _for_peft(backbone: Backbone) -> tuple[str, bool]:
    """(base_model, fan_in_fan_out)."""
    name = str(getattr(backbone.model.config, "_name_or_path", "") or "")
    return name, any(isinstance(module, Conv1D) for module in backbone.projections.values())


@torch.no_grad()
def fingerprint(backbone: Backbone) -> str:
    """Hash a sample of all weights, and the architecture and position settings (`model/identity.py`), to 16 hex digits.

    Equal for the same weights loaded in float32 and in bfloat16.
    """
    digest = hashlib.sha256(stated(backbone.model.config).encode())
    for name, weight in sorted(backbone.model.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        if weight.device.type != "meta":  # offloaded weights are not read
            sample = weight.detach().flatten()[:: max(1, weight.numel() // 64)]
            digest.update(sample.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
