"""Memories on disk: a PEFT LoRA folder plus memograft.json. Written whole or not at all; no pickle anywhere.

    adapter_config.json          as PEFT writes it: one rank, alpha = rank, the projections by their full names
    adapter_model.safetensors    base_model.model.<projection>.lora_A.weight (R, in), ...lora_B.weight (out, R)
    memograft.json               model fingerprint, settings, documents, report
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from memograft.errors import MemoryFormatError
from memograft.memory.adapter import Adapter

_FORMAT = 1
_ABOUT, _WEIGHTS, _CONFIG = "memograft.json", "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."


def write(path: Path, adapter: Adapter, about: Mapping[str, Any], base_model: str) -> Path:
    """Write the folder beside its place, then move it there."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    if path.exists() and not (path / _ABOUT).exists() and (not path.is_dir() or any(path.iterdir())):
        raise MemoryFormatError(f"{path} exists and is not a memory, so it is not overwritten; choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        tensors = {f"{_PREFIX}{n}.lora_A.weight": t for n, t in adapter.lora_a.items()}
        tensors |= {f"{_PREFIX}{n}.lora_B.weight": t for n, t in adapter.lora_b.items()}
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, draft / _WEIGHTS, {"format": "pt"})
        LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.rank,
            target_modules=sorted(adapter.lora_a),
            task_type="CAUSAL_LM",
            base_model_name_or_path=base_model,
            inference_mode=True,
        ).save_pretrained(str(draft))
        (draft / _ABOUT).write_text(json.dumps({"format": _FORMAT, **about}, indent=1), encoding="utf-8")
        _move(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return path


def read(path: Path, device: torch.device) -> tuple[Adapter, dict[str, Any]]:
    """The adapter and what memograft.json says.

    Raises:
        MemoryFormatError: a file is missing or damaged; the message names it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in (_ABOUT, _WEIGHTS, _CONFIG):
        if not (path / name).is_file():
            raise MemoryFormatError(f"a memory needs {name}, and {path} has none; was it saved with MemoryHandle.save?")
    try:
        about = json.loads((path / _ABOUT).read_text(encoding="utf-8"))
        wanted = {"format", "id", "fingerprint", "settings", "documents", "report"}
        if about.get("format") != _FORMAT or not wanted <= set(about):
            raise MemoryFormatError(
                f"{path / _ABOUT} must be of format {_FORMAT}, got {about.get('format')!r}; save the memory again"
            )
    except ValueError as e:
        raise e if isinstance(e, MemoryFormatError) else _damaged(path / _ABOUT, e) from e
    try:
        tensors = load_file(path / _WEIGHTS, device=str(device))
    except SafetensorError as e:
        raise _damaged(path / _WEIGHTS, e) from e
    parts: dict[str, dict[str, torch.Tensor]] = {"lora_A": {}, "lora_B": {}}
    for key, tensor in tensors.items():
        name, part, _ = key.removeprefix(_PREFIX).rsplit(".", 2)
        parts[part][name] = tensor.float()
    return Adapter(parts["lora_A"], parts["lora_B"]), about


def _damaged(path: Path, cause: Exception) -> MemoryFormatError:
    return MemoryFormatError(f"{path} is damaged ({cause}); save the memory again, or restore the file")


def _move(draft: Path, path: Path) -> None:
    for file in draft.iterdir():
        with file.open("rb") as f:
            os.fsync(f.fileno())
    if path.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
        os.replace(path, old / "memory")
        os.replace(draft, path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(draft, path)
