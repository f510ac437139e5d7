"""Where a number comes from: versions, commit, device. Every benchmark prints it with its results."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

import memograft

ROOT = Path(__file__).resolve().parent.parent


def provenance(threads: int) -> dict[str, Any]:
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or "unknown",
        "device": "cpu",
        "threads": threads,
        "python": platform.python_version(),
        "versions": {m.__name__: m.__version__ for m in (memograft, torch, transformers, peft)},
    }
