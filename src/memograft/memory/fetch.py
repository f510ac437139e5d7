"""Exported memories by name, from a folder or a URL, as local copies whose path is their content.

A place is the folder of `memograft export`, or the folder of a bank, whose memories are exported when they are asked
for. It is local, or a URL that fsspec reads, such as s3://bucket/memories. What comes from it is compared with its
checksums.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from memograft.errors import MemoryFormatError
from memograft.memory import folder
from memograft.memory.export import FILES, HASH, NAME, Server, checked, export
from memograft.storage.publish import published

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fsspec import AbstractFileSystem

__all__ = ["fetched"]


def fetched(
    place: str, name: str, cache: Path, base_model: str, *, server: Server = "vllm", max_rank: int | None = None
) -> Path | None:
    """A local LoRA folder of the memory with that id or name, for this base model; None if there is no such memory.

    Args:
        place: folder or URL.
        name: a memory's id, a name given to `export`, or the hash of an exported folder. Anybody may have written it.
        cache: folder for the copies.
        base_model: the name under which the base model is served.
        server: for a bank: what is to load the memory.
        max_rank: for a bank: see `export`.

    Raises:
        MemoryFormatError: it is damaged, of another base model, or not an adapter.
        OSError: the place cannot be read.
    """
    from fsspec.core import url_to_fs

    if not NAME.fullmatch(name):
        return None
    files, root = url_to_fs(place)
    files.invalidate_cache()  # other machines may have written since
    pointer = _content(files, f"{root}/{name}.json")
    if pointer is not None:
        to = _pointed(pointer, f"{root}/{name}.json")
    elif not HASH.fullmatch(name):
        return None
    elif _content(files, f"{root}/{name}/{FILES[-1]}") is not None:
        to = name
    elif _content(files, f"{root}/{name}/{folder.ABOUT}") is not None:
        with tempfile.TemporaryDirectory() as made:
            copy = Path(made)
            _copy(files, f"{root}/{name}", copy, [folder.ABOUT])
            _copy(files, f"{root}/{name}", copy, folder.about(copy)["files"])
            exported = export(copy, cache, server, max_rank=max_rank)
        _same(exported.base_model, base_model, name)
        return exported.folder
    else:
        return None
    local = cache / to
    try:
        about = checked(local)
    except MemoryFormatError:  # there is no copy yet, or it is damaged
        with published(local) as draft:
            _copy(files, f"{root}/{to}", draft, FILES)
        about = checked(local)
    _same(str(about["base_model"]), base_model, name)
    return local


def _content(files: AbstractFileSystem, path: str) -> bytes | None:
    """The content of a small file; None if there is none. (fsspec's `exists` says "no" after any error.)"""
    try:
        content: bytes = files.cat_file(path)
    except FileNotFoundError:
        return None
    return content


def _pointed(text: bytes, file: str) -> str:
    try:
        to = str(json.loads(text)["folder"])
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise MemoryFormatError(f"{file} is damaged ({e}); export the memory again") from e
    if not HASH.fullmatch(to):  # it becomes part of a path
        raise MemoryFormatError(f"{file} must name a folder of 32 hex digits, got {to!r}; export the memory again")
    return to


def _copy(files: AbstractFileSystem, source: str, into: Path, names: Iterable[str]) -> None:
    for name in names:
        (into / name).write_bytes(files.cat_file(f"{source}/{name}"))


def _same(of: str, served: str, name: str) -> None:
    if of != served:
        raise MemoryFormatError(
            f"memory {name} belongs to the base model {of!r}, and {served!r} is served; serve that model, or export "
            f"the memory again with --base-model {served}"
        )
