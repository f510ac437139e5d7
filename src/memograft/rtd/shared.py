"""One datastore per process for each folder."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path

from memograft.rtd.datastore import Datastore
from memograft.rtd.files import read_header

__all__ = ["shared_datastore"]

_datastores: weakref.WeakValueDictionary[Path, Datastore] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def shared_datastore(path: str | Path) -> Datastore:
    """The datastore in a folder, opened read-only and shared while it is in use; opened again after it was changed.

    Raises:
        StoreError: there is none; see also `Datastore.open`.
    """
    folder = Path(path).resolve()
    with _lock:
        datastore = _datastores.get(folder)
        if datastore is None or datastore.header != read_header(folder):
            datastore = _datastores[folder] = Datastore.open(folder, read_only=True)
        return datastore


def _after_fork() -> None:
    """Replace the lock, which a thread of the parent may have held."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
