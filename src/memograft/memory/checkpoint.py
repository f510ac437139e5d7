"""Checkpoints of a training: weights and optimiser as safetensors, settings and progress as JSON, written together.

checkpoint/state.safetensors    <name>, <name>.exp_avg, <name>.exp_avg_sq, <name>.step
checkpoint/state.json           settings and progress; SHA-256 of the other file, and of itself
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from memograft.errors import MemoryFormatError, SettingsError
from memograft.storage.disk import JsonObject, is_sealed, sealed, told
from memograft.storage.publish import published, recover

__all__ = ["read", "write"]

_FOLDER, _STATE, _ABOUT = "checkpoint", "state.safetensors", "state.json"


def write(
    folder: Path,
    settings: JsonObject,
    parameters: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    progress: JsonObject,
) -> None:
    """Write a checkpoint atomically in place of the last one."""
    from safetensors.torch import save

    tensors = dict(parameters)
    for name, parameter in parameters.items():
        tensors |= {f"{name}.{key}": torch.as_tensor(value) for key, value in optimiser.state[parameter].items()}
    data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    about = sealed({"settings": settings, "progress": progress, "sha256": hashlib.sha256(data).hexdigest()})
    with published(folder / _FOLDER) as draft:
        (draft / _STATE).write_bytes(data)
        (draft / _ABOUT).write_text(json.dumps(about), encoding="utf-8")


def read(
    folder: Path, settings: JsonObject, parameters: Mapping[str, Tensor], optimiser: torch.optim.Optimizer
) -> JsonObject | None:
    """Load the checkpoint into parameters and optimiser, and return its progress; None if there is none.

    Raises:
        SettingsError: it was written with other settings.
        MemoryFormatError: it is damaged.
    """
    from safetensors.torch import load

    path = folder / _FOLDER
    recover(path)
    if not (path / _ABOUT).exists():
        return None
    with told(path, MemoryFormatError, "read"):
        about, data = json.loads((path / _ABOUT).read_text(encoding="utf-8")), (path / _STATE).read_bytes()
    if not is_sealed(about) or about["sha256"] != hashlib.sha256(data).hexdigest():
        raise MemoryFormatError(f"{path} is damaged (a checksum is wrong); remove it, and training begins anew")
    before: JsonObject = about["settings"]
    other = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
    if other:
        name = other[0]
        raise SettingsError(
            f"{folder} has a run with `{name}` = {before.get(name)!r}, got {settings.get(name)!r}; repeat its "
            "settings to continue it, or choose another folder"
        )
    tensors = load(data)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
            optimiser.state[parameter] = {
                key: tensors[f"{name}.{key}"].to("cpu" if key == "step" else parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
    progress: JsonObject = about["progress"]
    return progress
