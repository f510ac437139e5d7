"""Memories on disk: a PEFT LoRA folder plus memograft.json. Written whole or not at all; no pickle anywhere.

adapter_config.json          as PEFT writes it: one rank, alpha = rank, the projections by their full names
adapter_model.safetensors    base_model.model.<projection>.lora_A.weight (R, in), ...lora_B.weight (out, R)
memograft.json               model fingerprint, settings, documents, report
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from memograft.errors import MemoryFormatError
from memograft.memory.adapter import Adapter
from memograft.memory.publish import published, recover

_FORMAT = 1
ABOUT, _WEIGHTS, _CONFIG = "memograft.json", "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."


def write(path: Path, adapter: Adapter, about: Mapping[str, Any], base_model: str, *, fan_in_fan_out: bool) -> Path:
    """Write the folder beside its place, then let it take that place; other files in it stay. See `publish`."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    if path.exists() and not (path / ABOUT).exists() and (not path.is_dir() or any(path.iterdir())):
        raise MemoryFormatError(f"{path} exists and is not a memory, so it is not overwritten; choose another folder")
    try:
        text = json.dumps({"format": _FORMAT, **about}, indent=1)
    except (TypeError, ValueError) as e:
        raise MemoryFormatError(
            f"the documents' metadata must be JSON to be saved, but: {e}; convert it to text"
        ) from e
    with published(path) as draft:
        tensors = {f"{_PREFIX}{n}.lora_A.weight": t for n, t in adapter.lora_a.items()}
        tensors |= {f"{_PREFIX}{n}.lora_B.weight": t for n, t in adapter.lora_b.items()}
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, draft / _WEIGHTS, {"format": "pt"})
        LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.rank,
            target_modules=sorted(adapter.lora_a),
            fan_in_fan_out=fan_in_fan_out,
            task_type="CAUSAL_LM",
            base_model_name_or_path=base_model,
            inference_mode=True,
        ).save_pretrained(str(draft))
        (draft / ABOUT).write_text(text, encoding="utf-8")
    return path


def read(path: Path, device: torch.device) -> tuple[Adapter, dict[str, Any]]:
    """The adapter and what memograft.json says.

    Raises:
        MemoryFormatError: a file is missing or damaged; the message names it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    recover(path)
    for name in (ABOUT, _WEIGHTS, _CONFIG):
        if not (path / name).is_file():
            raise MemoryFormatError(f"a memory needs {name}, and {path} has none; was it saved with MemoryHandle.save?")
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
    except ValueError as e:
        raise damaged(path / ABOUT, e) from e
    found = about.get("format") if isinstance(about, dict) else None
    if found != _FORMAT:
        raise MemoryFormatError(f"{path / ABOUT} must be of format {_FORMAT}, got {found!r}; save the memory again")
    if missing := {"id", "fingerprint", "settings", "documents", "report"} - set(about):
        raise damaged(path / ABOUT, KeyError(*sorted(missing)))
    parts: dict[str, dict[str, torch.Tensor]] = {"lora_A": {}, "lora_B": {}}
    try:
        for key, tensor in load_file(path / _WEIGHTS, device=str(device)).items():
            name, part, _ = key.removeprefix(_PREFIX).rsplit(".", 2)
            parts[part][name] = tensor.float()
    except (SafetensorError, KeyError, ValueError) as e:
        raise damaged(path / _WEIGHTS, e) from e
    return Adapter(parts["lora_A"], parts["lora_B"]), about


def damaged(path: Path, cause: Exception) -> MemoryFormatError:
    """The error for a file that cannot be read, named."""
    return MemoryFormatError(f"{path} is damaged ({cause}); save the memory again, or restore the file")
