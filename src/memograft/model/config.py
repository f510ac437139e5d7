"""memograft_config.json: settings that suit a model, stored beside its weights like generation_config.json.

    {"format": 1, "fastmem": {"learning_rate": 0.004, ...}, "about": {"where the values come from": ...}}

Its values replace "auto" in settings of FastMem. Files of the same format, in any place, are written by `memograft
tune` and read by `FastMem.load`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from memograft.errors import SettingsError
from memograft.storage.disk import told

__all__ = ["NAME", "of_model", "read", "write"]

NAME = "memograft_config.json"
_FORMAT = 1


def read(path: str | Path) -> dict[str, Any]:
    """The settings in a file, or in a folder's memograft_config.json. Names and values are not checked here.

    Raises:
        SettingsError: there is no such file, or it has another format.
    """
    path = _file(path, "read")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise SettingsError(f"there is no file {path}; write one with `memograft tune` or `FastMem.save`") from e
    except (OSError, ValueError) as e:
        raise SettingsError(f"{path} must be JSON, but: {e}; write it again, or remove it") from e
    if not isinstance(found, dict) or found.get("format") != _FORMAT or not isinstance(found.get("fastmem"), dict):
        raise SettingsError(
            f'{path} must hold {{"format": {_FORMAT}, "fastmem": {{...}}}}, got {json.dumps(found)[:80]}; '
            "write it again with this version, or remove it"
        )
    settings: dict[str, Any] = found["fastmem"]
    return settings


def write(path: str | Path, settings: Mapping[str, object], about: Mapping[str, object] | None = None) -> Path:
    """Write a file, or the memograft_config.json of a folder, atomically.

    Raises:
        SettingsError: it cannot be written.
    """
    path = _file(path, "written")
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    content = {"format": _FORMAT, "fastmem": dict(settings), "about": dict(about or {})}
    with told(path, SettingsError, "written"):
        try:
            draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    return path


def _file(path: str | Path, what: str) -> Path:
    with told(path, SettingsError, what):
        return Path(path) / NAME if Path(path).is_dir() else Path(path)


def of_model(name: str | Path, bundled: Mapping[str, str], **kwargs: object) -> dict[str, Any]:
    """A model's own settings, from its folder, the folder of its GGUF file, or the hub; {} if there are none."""
    if str(name) in bundled:
        name = str(files("memograft") / bundled[str(name)])
    folder = Path(name) if Path(name).is_dir() else Path(name).parent if Path(name).is_file() else None
    if folder is not None:
        return read(folder) if (folder / NAME).is_file() else {}
    from transformers.utils import cached_file

    hub = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in kwargs}
    try:
        found = cached_file(str(name), NAME, _raise_exceptions_for_missing_entries=False, **hub)
    except OSError:  # no such model, or no network: loading reports that
        return {}
    return read(found) if found else {}
