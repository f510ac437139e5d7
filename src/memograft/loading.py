"""Loads a causal LM and its tokenizer by id or folder, the bundled one included. Knows nothing of memories."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

__all__ = ["load"]

BUNDLED = {"tiny": "models/tiny"}


def load(name: str | Path, **kwargs: Any) -> tuple[Any, Any]:
    """(model, tokenizer). `kwargs` go to AutoModelForCausalLM.from_pretrained.

    Without a dtype and a device map the model keeps its own dtype on a GPU, and becomes float32 on a CPU, where half
    precision is slow and emulated.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = str(files("memograft") / BUNDLED[str(name)]) if str(name) in BUNDLED else str(name)
    shared = {
        k: kwargs[k] for k in ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code") if k in kwargs
    }
    tokenizer = AutoTokenizer.from_pretrained(path, **shared)
    placed = "device_map" in kwargs or "quantization_config" in kwargs
    device = "cpu" if placed or not torch.cuda.is_available() else "cuda"
    if "dtype" not in kwargs:
        kwargs["dtype"] = torch.float32 if device == "cpu" and not placed else "auto"
    model = AutoModelForCausalLM.from_pretrained(path, **kwargs)
    if not placed and device != "cpu":
        model = model.to(device)
    return model.eval(), tokenizer
