"""Folders of what a training makes: a LoRA, other tensors, and a JSON file. Written atomically and verified when they
are read; pickle is not used.

adapter_config.json, adapter_model.safetensors   the LoRA as PEFT writes it
<kind>.safetensors                               the other tensors, float32
<kind>.json                                      format, model fingerprint, sizes, training; SHA-256 of the others, and
                                                 of itself
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from memograft.errors import MemoryFormatError
from memograft.memory.folder import WEIGHTS, adapter_of, write_adapter
from memograft.model.adapter import Adapter
from memograft.model.backbone import Backbone, linear_shape
from memograft.storage.disk import SEAL, Findings, JsonObject, is_sealed, sealed, told
from memograft.storage.publish import published, recover

__all__ = ["Kind", "damaged"]

_REMEDY = "train it again, or restore the file"


@dataclass(frozen=True)
class Kind:
    """A kind of trained folder.

    Attributes:
        name: of its files; `memograft train <name>` makes one.
        format: number of the current format.
        bundled: folders in the package, by the names that stand for them.
    """

    name: str
    format: int
    bundled: Mapping[str, str] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """Name of the JSON file."""
        return f"{self.name}.json"

    @property
    def tensors(self) -> str:
        """Name of the file of tensors."""
        return f"{self.name}.safetensors"

    def write(
        self,
        path: Path,
        adapter: Adapter,
        tensors: Mapping[str, Tensor],
        backbone: Backbone,
        maps: Mapping[str, nn.Module],
        what: JsonObject,
    ) -> None:
        """Write the folder; `what` is the content of the JSON file. Other files in it are kept.

        Raises:
            MemoryFormatError: it cannot be written.
        """
        from safetensors.torch import save

        name = str(getattr(backbone.model.config, "_name_or_path", "") or "")
        turned = any(isinstance(module, Conv1D) for module in maps.values())
        with told(path, MemoryFormatError, "written"), published(path) as draft:
            write_adapter(draft, adapter, name, fan_in_fan_out=turned)
            own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            (draft / self.tensors).write_bytes(save(own, {"format": "pt"}))
            files = {file.name: _sha256(file.read_bytes()) for file in sorted(draft.iterdir())}
            text = json.dumps(sealed({"format": self.format, **what, "files": files}), indent=1)
            (draft / self.file).write_text(text, encoding="utf-8")

    def about(self, path: Path) -> JsonObject:
        """The content of the JSON file, with its checksum, which depends on all files, as `id`.

        Raises:
            MemoryFormatError: it is missing, damaged or of another format.
        """
        path = self.located(path)
        recover(path)
        file = path / self.file
        if not file.is_file():
            raise MemoryFormatError(
                f"a {self.name} needs {self.file}, and {str(path)!r} has none; name a folder that `memograft train "
                f"{self.name}` wrote"
            )
        with told(file, MemoryFormatError, "read"):
            text = file.read_bytes()
        try:
            what: JsonObject = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise damaged(file, e) from e
        found = what.get("format") if isinstance(what, dict) else None
        if found != self.format:
            raise MemoryFormatError(
                f"{file} must be of format {self.format}, got {found!r}; train it with this version"
            )
        if not is_sealed(what):
            raise damaged(file, "its checksum is wrong")
        return {**what, "id": str(what[SEAL])[:32]}

    def read(
        self, path: Path, backbone: Backbone, maps: Mapping[str, nn.Module]
    ) -> tuple[Adapter, dict[str, Tensor], JsonObject]:
        """Read LoRA, tensors and JSON file for a model, and compare all files with their checksums.

        Raises:
            MemoryFormatError: a file is missing or damaged, or the LoRA does not fit the model.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.located(path)
        what, found = self.about(path), {}
        for name, digest in what["files"].items():
            with told(path / name, MemoryFormatError, "read", _REMEDY):
                found[name] = (path / name).read_bytes()
            if _sha256(found[name]) != digest:
                raise damaged(path / name, "its checksum is wrong")
        try:
            adapter = adapter_of(found[WEIGHTS], path / WEIGHTS, backbone.device)
            tensors = {name: t.float().to(backbone.device) for name, t in load(found[self.tensors]).items()}
        except (KeyError, SafetensorError) as e:
            raise damaged(path, e) from e
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise damaged(path / self.tensors, "its numbers must be finite")
        for name, a in adapter.lora_a.items():
            fits = (a.shape[1], adapter.lora_b[name].shape[0])
            if name not in maps or linear_shape(maps[name]) != fits:
                raise MemoryFormatError(
                    f"the {self.name} in {path} does not fit this model at {name}; train it for this model"
                )
        return adapter, tensors, what

    def inspected(self, path: Path) -> Findings:
        """Check a folder for damage."""
        path, found = self.located(path), Findings()
        try:
            files = self.about(path)["files"]
        except MemoryFormatError as error:
            return Findings({path / self.file: str(error)})
        for name, digest in files.items():
            file = path / name
            if not file.is_file() or _sha256(file.read_bytes()) != digest:
                found.damaged[file] = str(damaged(file, "it is missing, or its checksum is wrong"))
        return found

    def located(self, path: Path) -> Path:
        """The folder in the package that a name stands for, unless there is a folder of that name."""
        if str(path) not in self.bundled or (path / self.file).exists():
            return path
        return Path(str(resources.files("memograft") / self.bundled[str(path)]))


def damaged(file: Path, cause: object) -> MemoryFormatError:
    """The error for a damaged file."""
    return MemoryFormatError(f"{file} is damaged ({cause}); {_REMEDY}")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
