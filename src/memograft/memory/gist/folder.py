"""Trained gists on disk: a folder that is written atomically and verified when it is read; pickle is not used.

adapter_config.json, adapter_model.safetensors   the LoRA as PEFT writes it
gist.safetensors                                 embeddings (k, D), float32
gist.json                                        k, W, model fingerprint, training; SHA-256 of the others, and of itself

The folder "tiny" is the bundled gist of the bundled model.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from transformers.pytorch_utils import Conv1D

from memograft.errors import MemoryFormatError
from memograft.memory.folder import WEIGHTS, adapter_of, write_adapter
from memograft.memory.gist.compress import GistWeights, maps
from memograft.model.backbone import Backbone, linear_shape
from memograft.storage.disk import SEAL, Findings, JsonObject, is_sealed, sealed, told
from memograft.storage.publish import published, recover

__all__ = ["GistAbout", "about", "inspected", "read", "write"]

_FORMAT = 3  # in format 2, the whole prompt came behind the gists, and only the first token in front of them
_ABOUT, _EMBEDDINGS = "gist.json", "gist.safetensors"
_BUNDLED = {"tiny": "models/tiny-gist"}
_REMEDY = "train it again, or restore the file"


@dataclass(frozen=True)
class GistAbout:
    """The content of gist.json.

    Attributes:
        id: its checksum, which depends on all files.
        fingerprint: of the model that it was trained for.
        tokens: k.
        window: W.
        on_documents: see `GistWeights`.
        training: settings, steps and tokens seen.
        files: SHA-256 of each file.
    """

    id: str
    fingerprint: str
    tokens: int
    window: int
    on_documents: bool
    training: JsonObject
    files: dict[str, str]


def write(path: Path, weights: GistWeights, backbone: Backbone, fingerprint: str, training: JsonObject) -> None:
    """Write the folder. Other files in it are kept.

    Raises:
        MemoryFormatError: it cannot be written.
    """
    from safetensors.torch import save

    name = str(getattr(backbone.model.config, "_name_or_path", "") or "")
    turned = any(isinstance(module, Conv1D) for module in maps(backbone).values())
    with told(path, MemoryFormatError, "written"), published(path) as draft:
        write_adapter(draft, weights.adapter, name, fan_in_fan_out=turned)
        embeddings = weights.embeddings.detach().cpu().contiguous()
        (draft / _EMBEDDINGS).write_bytes(save({"embeddings": embeddings}, {"format": "pt"}))
        files = {file.name: _sha256(file.read_bytes()) for file in sorted(draft.iterdir())}
        what = {"format": _FORMAT, "fingerprint": fingerprint, "tokens": weights.tokens, "window": weights.window}
        what |= {"on_documents": weights.on_documents, "training": training, "files": files}
        (draft / _ABOUT).write_text(json.dumps(sealed(what), indent=1), encoding="utf-8")


def about(path: Path) -> GistAbout:
    """The content of a folder's gist.json.

    Raises:
        MemoryFormatError: it is missing, damaged or of another format.
    """
    path = _located(path)
    recover(path)
    file = path / _ABOUT
    if not file.is_file():
        raise MemoryFormatError(
            f"a gist needs {_ABOUT}, and {str(path)!r} has none; name a folder that `memograft train gist` wrote"
        )
    with told(file, MemoryFormatError, "read"):
        text = file.read_bytes()
    try:
        what: JsonObject = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise _damaged(file, e) from e
    found = what.get("format") if isinstance(what, dict) else None
    if found != _FORMAT:
        raise MemoryFormatError(f"{file} must be of format {_FORMAT}, got {found!r}; train it with this version")
    if not is_sealed(what):
        raise _damaged(file, "its checksum is wrong")
    try:
        return GistAbout(
            str(what[SEAL])[:32],
            *(what[name] for name in ("fingerprint", "tokens", "window", "on_documents", "training", "files")),
        )
    except KeyError as e:
        raise _damaged(file, e) from e


def read(path: Path, backbone: Backbone) -> GistWeights:
    """Read the weights for a model, and compare all files with their checksums.

    Raises:
        MemoryFormatError: a file is missing or damaged, or the weights do not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = _located(path)
    what, found = about(path), {}
    for name, digest in what.files.items():
        with told(path / name, MemoryFormatError, "read", _REMEDY):
            found[name] = (path / name).read_bytes()
        if _sha256(found[name]) != digest:
            raise _damaged(path / name, "its checksum is wrong")
    try:
        adapter = adapter_of(found[WEIGHTS], path / WEIGHTS, backbone.device)
        embeddings = load(found[_EMBEDDINGS])["embeddings"].float().to(backbone.device)
    except (KeyError, SafetensorError) as e:
        raise _damaged(path, e) from e
    weights = GistWeights(embeddings, adapter, what.window, what.on_documents)
    known, shape = maps(backbone), (what.tokens, backbone.width)
    if tuple(embeddings.shape) != shape or not embeddings.isfinite().all():
        raise _damaged(path / _EMBEDDINGS, f"embeddings must be finite and of shape {shape}")
    for name, a in adapter.lora_a.items():
        fits = (a.shape[1], adapter.lora_b[name].shape[0])
        if name not in known or linear_shape(known[name]) != fits:
            raise MemoryFormatError(f"the gist in {path} does not fit this model at {name}; train it for this model")
    return weights


def inspected(path: Path) -> Findings:
    """Check a gist's folder for damage."""
    path, found = _located(path), Findings()
    try:
        files = about(path).files
    except MemoryFormatError as error:
        return Findings({path / _ABOUT: str(error)})
    for name, digest in files.items():
        file = path / name
        if not file.is_file() or _sha256(file.read_bytes()) != digest:
            found.damaged[file] = str(_damaged(file, "it is missing, or its checksum is wrong"))
    return found


def _located(path: Path) -> Path:
    """The folder of a bundled gist, unless there is one of that name."""
    if str(path) not in _BUNDLED or (path / _ABOUT).exists():
        return path
    return Path(str(resources.files("memograft") / _BUNDLED[str(path)]))


def _damaged(file: Path, cause: object) -> MemoryFormatError:
    return MemoryFormatError(f"{file} is damaged ({cause}); {_REMEDY}")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
