"""The environment of a measurement: versions, commit, device. It is printed with all results."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import peft
import torch
import transformers

import memograft

__all__ = ["commit", "provenance", "versions"]


def provenance(device: torch.device) -> dict[str, object]:
    """The environment as JSON values."""
    name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    return {
        "commit": commit(),
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of the libraries that compute the answers."""
    return {m.__name__: str(m.__version__) for m in (memograft, torch, transformers, peft)}


def commit() -> str:
    """The commit of Memograft's checkout; "unknown" if it is installed, or without git."""
    root = Path(memograft.__file__).resolve().parents[2]
    if not (root / ".git").exists():  # git would otherwise find a repository around the virtual environment
        return "unknown"
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
