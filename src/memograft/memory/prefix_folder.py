"""A document's keys and values on disk, in a folder of their own.

prefix.safetensors    0.keys, 0.values, 1.keys, ... (1, H, P, head dimension), x and residual (1, P, D)
prefix.json           id, model, documents, tokens; SHA-256 of the other file, and of itself

With int8, keys and values are rounded to 8 bits each (`Int8`), with <n>.keys.exponents (1, H, P, blocks). x and
residual, which memorizing trains on, keep the model's dtype.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from memograft.errors import MemoryFormatError
from memograft.storage.disk import JsonObject, is_sealed, sealed, told
from memograft.storage.publish import published

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from memograft.memory.prefixes import Place
    from memograft.model.kv import Piece

__all__ = ["ABOUT", "about", "read", "write"]

_FORMAT = 2
ABOUT, _TENSORS = "prefix.json", "prefix.safetensors"


def write(path: Path, piece: Piece, place: Place, fingerprint: str, *, int8: bool) -> None:
    """Write the folder atomically."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {"x": piece.x, "residual": piece.residual}
    for n, pair in enumerate(piece.layers):
        for name, tensor in zip((f"{n}.keys", f"{n}.values"), pair, strict=True):
            tensors |= _rounded(name, tensor) if int8 else {name: tensor}
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    document = {"id": place.document.id, "text": place.document.text}
    what = {"format": _FORMAT, "id": place.id, "fingerprint": fingerprint, "tokens": [place.start, place.end]}
    what |= {"layers": len(piece.layers), "int8": int8, "documents": [document], "sha256": _sha256(data)}
    with published(path) as draft:
        (draft / _TENSORS).write_bytes(data)
        (draft / ABOUT).write_text(json.dumps(sealed(what), indent=1), encoding="utf-8")


def read(path: Path, device: torch.device, dtype: torch.dtype) -> Piece:
    """Read the keys and values and compare them with their checksum.

    Raises:
        MemoryFormatError: a file is missing or damaged; the message names it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    from memograft.model.kv import Piece

    what, file = about(path), path / _TENSORS
    with told(file, MemoryFormatError, "read"):
        data = file.read_bytes()
    if _sha256(data) != what["sha256"]:
        raise _damaged(file, "its checksum is wrong")
    try:
        tensors, layers = load(data), range(what["layers"])
        pairs = [[_restored(tensors, f"{n}.{name}", dtype) for name in ("keys", "values")] for n in layers]
        x, residual = tensors["x"], tensors["residual"]
    except (SafetensorError, KeyError, TypeError) as e:
        raise _damaged(file, e) from e
    on = [(keys.to(device), values.to(device)) for keys, values in pairs]
    return Piece(tuple(on), x.to(device), residual.to(device))


def about(path: Path) -> JsonObject:
    """The content of prefix.json.

    Raises:
        MemoryFormatError: it is missing or damaged.
    """
    file = path / ABOUT
    with told(file, MemoryFormatError, "read"):
        text = file.read_bytes()
    try:
        what: JsonObject = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise _damaged(file, e) from e
    if not isinstance(what, dict) or what.get("format") != _FORMAT or not is_sealed(what):
        raise _damaged(file, f"it is not of format {_FORMAT}, or its checksum is wrong")
    if what["id"] != path.name:
        raise _damaged(file, f"it belongs to {what['id']}")
    return what


def _rounded(name: str, tensor: Tensor) -> dict[str, Tensor]:
    from memograft.model.int8 import Int8

    small = Int8.of(tensor)
    return {name: small.steps, f"{name}.exponents": small.exponents}


def _restored(tensors: dict[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
    from memograft.model.int8 import Int8

    tensor, exponents = tensors[name], tensors.get(f"{name}.exponents")
    return tensor if exponents is None else Int8(tensor, exponents).numbers(dtype)


def _damaged(file: Path, cause: object) -> MemoryFormatError:
    return MemoryFormatError(f"{file} is damaged ({cause}); remove it, and it is made anew")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
