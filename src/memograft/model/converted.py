"""Folders that take long to make, made once in the user's cache: whole or not at all, checked whenever they are used.

<cache>/<name>/                 what `make` wrote
<cache>/<name>/memograft.json   the digest of each file; without it, or with another, the folder is made anew
<cache>/<name>.lock             held while it is made, so that two processes do not do the same work
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock

__all__ = ["CACHE_VARIABLE", "digest", "kept", "root"]

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "MEMOGRAFT_CACHE"
_MANIFEST = "memograft.json"
_PATIENCE = 1800.0  # seconds to wait for another process that makes the same folder
_MIB = 2**20
_SAMPLES = 1024


def root() -> Path:
    """The cache: `MEMOGRAFT_CACHE`, or else Memograft's folder among the user's caches.

    Raises:
        OSError: the variable is not set and the user has no home.
    """
    if given := os.environ.get(CACHE_VARIABLE):
        return _expanded(given)
    if sys.platform == "darwin":
        base = "~/Library/Caches"
    elif sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(base) / "memograft"


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise OSError(f"there is no home to look for {path} in") from error


def digest(file: Path) -> str:
    """SHA-256 of a file's size and content: all of it up to 1 GiB, of a larger one 1,024 MiB spread evenly.

    It is taken at every load. A second at most is what that may cost; samples find what happens to files of gigabytes:
    they are cut off, copied halfway or replaced.
    """
    size = file.stat().st_size
    sha = hashlib.sha256(str(size).encode())
    blocks = -(-size // _MIB)
    with file.open("rb") as opened:
        for i in range(min(blocks, _SAMPLES)):
            opened.seek((i if blocks <= _SAMPLES else i * (blocks - 1) // (_SAMPLES - 1)) * _MIB)
            sha.update(opened.read(_MIB))
    return sha.hexdigest()


@contextmanager
def kept(name: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """The folder of that name in the cache, for reading. Where it is missing or damaged, `make` fills an empty one.

    Where the cache cannot be written, the folder is a temporary one that ends with the context, and a warning says so.
    """
    from safetensors import SafetensorError  # how a full disk is reported while weights are saved

    # NotImplementedError is filelock's word for a file system without locks

    try:
        folder = root() / name
        if not _intact(folder):
            _keep(folder, make)
    except (OSError, SafetensorError, NotImplementedError) as error:
        logger.warning(
            "the cache cannot be used (%s), so this work is done again at each load; set %s to a folder that can be "
            "written",
            error,
            CACHE_VARIABLE,
        )
    else:
        yield folder
        return
    with TemporaryDirectory(prefix="memograft-", ignore_cleanup_errors=True) as temporary:
        make(Path(temporary))
        yield Path(temporary)


def _keep(folder: Path, make: Callable[[Path], None]) -> None:
    """Make the folder beside its place, then move it there, unless another process has done so meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock", timeout=_PATIENCE):
        if _intact(folder):
            return
        draft = folder.with_name(f"{folder.name}.draft")
        for left in (draft, folder):  # the lock is ours, so whoever was drafting has died
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        try:
            draft.mkdir()
            make(draft)
            files = {file.name: digest(file) for file in sorted(draft.iterdir())}
            (draft / _MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _intact(folder: Path) -> bool:
    """Whether the folder holds the files of its manifest, unchanged, and no others."""
    try:
        files = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["files"]
        found = {file.name: digest(file) for file in folder.iterdir() if file.name != _MANIFEST}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(files == found)
