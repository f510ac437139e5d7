"""Where a number comes from: versions, commit, device. Whatever is measured is printed with it."""

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
    """All of it as JSON values."""
    name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    return {
        "commit": commit(),
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what computes the answers."""
    return {m.__name__: str(m.__version__) for m in (memograft, torch, transformers, peft)}


def commit() -> str:
    """Of the checkout that Memograft runs from; "unknown" where it is installed, or there is no git."""
    root = Path(memograft.__file__).resolve().parents[2]
    if not (root / ".git").exists():  # else git would find the repository that a virtual environment lies in
        return "unknown"
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
