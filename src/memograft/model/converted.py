"""A cache of folders that take long to make. They are written atomically and verified at each use.

<cache>/<name>/                 the output of `make`
<cache>/<name>/memograft.json   the digest of each file; if it is missing or does not match, the folder is made again
<cache>/<name>.lock             locked while the folder is made, so that two processes do not do the same work
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
    """The cache folder: `MEMOGRAFT_CACHE`, or else a folder in the user's cache directory.

    Raises:
        OSError: the variable is not set and there is no home directory.
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
    """SHA-256 of a file's size and content. Of a file over 1 GiB, only 1,024 evenly spaced blocks of 1 MiB are read.

    This runs at every load and must take at most about a second. The blocks detect the usual damage of large files: cut
    off, partly copied, or replaced.
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
    """The cached folder of that name, for reading. If it is missing or damaged, `make` fills an empty one.

    If the cache cannot be written, a warning is logged and a temporary folder is used, which is deleted at the end.
    """
    from safetensors import SafetensorError  # raised by a full disk while weights are saved

    # filelock raises NotImplementedError on file systems without locks.

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
    """Make the folder under another name and rename it, unless another process has made it meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock", timeout=_PATIENCE):
        if _intact(folder):
            return
        draft = folder.with_name(f"{folder.name}.draft")
        for left in (draft, folder):  # we have the lock, so a draft is from a process that died
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
    """Whether the folder has exactly the files of its manifest, unchanged."""
    try:
        files = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["files"]
        found = {file.name: digest(file) for file in folder.iterdir() if file.name != _MANIFEST}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(files == found)
