"""The `ModelProfile` of a model, from its configuration file if it is not loaded."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from langchain_core.language_models.model_profile import ModelProfile

__all__ = ["profile_of"]

_WINDOWS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


def profile_of(
    model: str, model_kwargs: dict[str, Any], engine: Any = None, base_url: str | None = None
) -> ModelProfile:
    """The capabilities of a model, without those that are known only when it is loaded, or when its server is asked."""
    profile = ModelProfile(
        name=model,
        open_weights=True,
        text_inputs=True,
        text_outputs=True,
        image_inputs=False,
        audio_inputs=False,
        video_inputs=False,
        image_outputs=False,
        audio_outputs=False,
        video_outputs=False,
        tool_choice=True,
        structured_output=True,
        tool_call_streaming=False,
        temperature=True,
    )
    window = engine.max_length if engine is not None else _window(model, model_kwargs) if base_url is None else None
    if window is not None:
        profile["max_input_tokens"] = window
    if engine is not None:
        profile["tool_calling"] = engine.takes_tools
    return profile


def _window(model: str, model_kwargs: dict[str, Any]) -> int | None:
    config = _config(model, model_kwargs)
    inner = config.get("text_config")
    found = (holder.get(key) for holder in (config, inner if isinstance(inner, dict) else {}) for key in _WINDOWS)
    windows = [value for value in (*found, model_kwargs.get("max_length")) if isinstance(value, int)]
    return min(windows, default=None)


def _config(model: str, model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The model's config.json if it is on this machine; nothing is downloaded."""
    bundled = Path(str(files("memograft"))) / "models" / model / "config.json"
    path = next((p for p in (bundled, Path(model) / "config.json") if _is_file(p)), None)
    if path is None:
        path = _cached(model, model_kwargs)
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _cached(model: str, model_kwargs: dict[str, Any]) -> Path | None:
    """The file in Hugging Face's cache."""
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(
            model, "config.json", cache_dir=model_kwargs.get("cache_dir"), revision=model_kwargs.get("revision")
        )
    except (ImportError, ValueError):  # huggingface_hub raises a ValueError for an invalid id
        return None
    return Path(found) if isinstance(found, str) else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # an invalid file name
        return False
