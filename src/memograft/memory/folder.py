"""Memories on disk: a PEFT LoRA folder plus memograft.json. Written atomically; pickle is not used.

adapter_config.json          as PEFT writes it: one rank, alpha = rank, the projections by their full names
adapter_model.safetensors    base_model.model.<projection>.lora_A.weight (R, in), ...lora_B.weight (out, R)
keys.safetensors             keys and values of the context, if its kind of memory carries them (`carried_file.py`)
memograft.json               model fingerprint, settings, documents, report; SHA-256 of the others, and of itself
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from memograft.errors import MemoryFormatError
from memograft.storage.disk import SEAL, Findings, JsonObject, is_sealed, sealed, told
from memograft.storage.publish import published, recover

if TYPE_CHECKING:  # listing memories must not import torch
    import torch

    from memograft.model.adapter import Adapter
    from memograft.model.carried import Carried

_FORMAT = 2
ABOUT, WEIGHTS, _CONFIG, _KEYS = (
    "memograft.json",
    "adapter_model.safetensors",
    "adapter_config.json",
    "keys.safetensors",
)
FILES = (ABOUT, WEIGHTS, _CONFIG)  # of a memory with weights
_SETS = [set(), {WEIGHTS, _CONFIG}, {_KEYS}, {WEIGHTS, _CONFIG, _KEYS}]
_GROWTH = 32  # largest ratio of an unpacked file to the zip file; text compresses to a tenth, weights hardly
_PREFIX = "base_model.model."
_FIELDS = {"format", "id", "fingerprint", "settings", "documents", "report", "files", SEAL}


def write(
    path: Path,
    adapter: Adapter | None,
    carried: Carried | None,
    about: JsonObject,
    base_model: str,
    *,
    fan_in_fan_out: bool,
) -> Path:
    """Write the folder atomically (see `publish`). Other files in it are kept.

    A memory without weights and keys is memograft.json alone.
    """
    if path.exists() and not (path / ABOUT).exists() and (not path.is_dir() or any(path.iterdir())):
        raise MemoryFormatError(f"{path} exists and is not a memory, so it is not overwritten; choose another folder")
    try:
        json.dumps(about)
    except (TypeError, ValueError) as e:
        raise MemoryFormatError(
            f"the documents' metadata must be JSON to be saved ({e}); convert the metadata to text"
        ) from e
    with published(path) as draft:
        if adapter is not None:
            write_adapter(draft, adapter, base_model, fan_in_fan_out=fan_in_fan_out)
        if carried is not None:
            from memograft.memory.carried_file import packed

            (draft / _KEYS).write_bytes(packed(carried))
        files = {file.name: _sha256(file.read_bytes()) for file in sorted(draft.iterdir())}
        text = json.dumps(sealed({"format": _FORMAT, **about, "files": files}), indent=1)
        (draft / ABOUT).write_text(text, encoding="utf-8")
    return path


def write_adapter(draft: Path, adapter: Adapter, base_model: str, *, fan_in_fan_out: bool) -> None:
    """Write an adapter's two files as PEFT does."""
    from peft import LoraConfig
    from safetensors.torch import save

    tensors = {f"{_PREFIX}{n}.lora_A.weight": t for n, t in adapter.lora_a.items()}
    tensors |= {f"{_PREFIX}{n}.lora_B.weight": t for n, t in adapter.lora_b.items()}
    weights = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {"format": "pt"})
    (draft / WEIGHTS).write_bytes(weights)
    LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.rank,
        target_modules=sorted(adapter.lora_a),
        fan_in_fan_out=fan_in_fan_out,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
        inference_mode=True,
    ).save_pretrained(str(draft))


def read(path: Path, device: torch.device, dtype: torch.dtype) -> tuple[Adapter | None, Carried | None, JsonObject]:
    """Read the adapter and the keys, if there are any, and memograft.json, and compare them with their checksums.

    adapter_config.json is only for PEFT: it must exist, but its checksum is compared by `inspected`.

    Raises:
        MemoryFormatError: a file is missing or damaged; the message names it.
    """
    recover(path)
    _needs(path, ABOUT)
    while True:
        text = (path / ABOUT).read_bytes()
        about = _parsed(text, path / ABOUT)
        for name in about["files"]:
            _needs(path, name)
        data = {name: (path / name).read_bytes() for name in (WEIGHTS, _KEYS) if name in about["files"]}
        if text == (path / ABOUT).read_bytes():  # otherwise another memory was saved here meanwhile
            break
    for name, content in data.items():
        if _sha256(content) != about["files"][name]:
            raise damaged(path / name, "its checksum is wrong")
    adapter = adapter_of(data[WEIGHTS], path / WEIGHTS, device) if WEIGHTS in data else None
    return adapter, _carried(data[_KEYS], path / _KEYS, device, dtype) if _KEYS in data else None, about


def _needs(path: Path, name: str) -> None:
    if not (path / name).is_file():
        raise MemoryFormatError(f"a memory needs {name}, and {path} has none; was it saved with MemoryHandle.save?")


def about(path: Path) -> JsonObject:
    """The content of a memory's memograft.json.

    Raises:
        MemoryFormatError: it is missing or damaged.
    """
    with told(path / ABOUT, MemoryFormatError, "read"):
        return _parsed((path / ABOUT).read_bytes(), path / ABOUT)


def inspected(path: Path) -> Findings:
    """Check a memory's folder for damage."""
    found = Findings()
    try:
        about = _parsed((path / ABOUT).read_bytes(), path / ABOUT)
    except FileNotFoundError:
        missing = [path / name for name in FILES if not (path / name).is_file()]
        return Findings({file: str(damaged(file, "it is missing")) for file in missing})
    except MemoryFormatError as error:
        return Findings({path / ABOUT: str(error)})
    for name in (name for name in (*FILES, _KEYS) if name in about["files"]):
        try:
            data = (path / name).read_bytes()
            if _sha256(data) != about["files"][name]:
                raise damaged(path / name, "its checksum is wrong")
            if name == WEIGHTS:
                adapter_of(data, path / name, "cpu")
            if name == _KEYS:
                _carried(data, path / name, "cpu", None)
        except FileNotFoundError:
            found.damaged[path / name] = str(damaged(path / name, "it is missing"))
        except MemoryFormatError as error:
            found.damaged[path / name] = str(error)
    return found


def unpack(path: Path, into: Path) -> None:
    """Unpack a memory's files, and no others, from a zip file.

    Raises:
        MemoryFormatError: it is not a zip file, lacks memograft.json, is damaged, or unpacks to much more than its
            size.
    """
    bound = _GROWTH * path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            for info in map(
                archive.getinfo, [ABOUT, *(name for name in (*FILES[1:], _KEYS) if name in archive.namelist())]
            ):
                if info.file_size > bound:
                    raise MemoryFormatError(
                        f"a file of an exported memory must be at most {_GROWTH} times the zip file's size ({bound} "
                        f"bytes), got {info.filename} with {info.file_size} bytes in {path}; export the memory again"
                    )
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others have no limit
                    raise zipfile.BadZipFile(f"{info.filename} is neither stored nor deflated")
                with archive.open(info) as packed, (into / info.filename).open("wb") as file:
                    shutil.copyfileobj(packed, file)  # in blocks, at most `file_size` bytes
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError) as e:  # the last: encrypted
        raise MemoryFormatError(f"{path} is not an exported memory ({e}); export it again") from e


def damaged(path: Path, cause: object) -> MemoryFormatError:
    """The error for a file that cannot be read."""
    return MemoryFormatError(f"{path} is damaged ({cause}); save the memory again, or restore the file")


def _parsed(text: bytes, file: Path) -> JsonObject:
    """Parse memograft.json and check its format and checksum."""
    try:
        about: JsonObject = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise damaged(file, e) from e
    found = about.get("format") if isinstance(about, dict) else None
    if found != _FORMAT:
        raise MemoryFormatError(f"{file} must be of format {_FORMAT}, got {found!r}; save the memory again")
    if missing := _FIELDS - set(about):
        raise damaged(file, KeyError(*sorted(missing)))
    if set(about) != _FIELDS:
        raise damaged(file, f"its fields are {sorted(about)}")
    if not is_sealed(about):
        raise damaged(file, "its checksum is wrong")
    if not isinstance(about["files"], dict) or set(about["files"]) not in _SETS:
        raise damaged(file, "its list of files is wrong")
    return about


def adapter_of(data: bytes, file: Path, device: torch.device | str) -> Adapter:
    """The adapter in the bytes of a file of weights.

    Raises:
        MemoryFormatError: they are damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    from memograft.model.adapter import Adapter

    parts: dict[str, dict[str, torch.Tensor]] = {"lora_A": {}, "lora_B": {}}
    try:
        for key, tensor in load(data).items():
            name, part, _ = key.removeprefix(_PREFIX).rsplit(".", 2)
            parts[part][name] = tensor.float().to(device)
            if tensor.ndim != 2 or not tensor.isfinite().all():
                raise ValueError(f"{key} must be a matrix of finite numbers")
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as e:
        raise damaged(file, e) from e
    return Adapter(parts["lora_A"], parts["lora_B"])


def _carried(data: bytes, file: Path, device: torch.device | str, dtype: torch.dtype | None) -> Carried:
    from safetensors import SafetensorError

    from memograft.memory.carried_file import unpacked

    try:
        return unpacked(data, device, dtype)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as e:
        raise damaged(file, e) from e


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
