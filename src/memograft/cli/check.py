"""`memograft check`: verify a saved memory, a bank, a gist, a MAC or its bank, a datastore or a vector store."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text
from tqdm import tqdm

from memograft.cli.console import out
from memograft.errors import StoreError
from memograft.storage.disk import Findings

__all__ = ["check"]

_MANY = 100  # memories of a bank from which a progress bar is shown

_KINDS = {  # files that identify the kind; a gist and a MAC have an adapter's files too
    "bank of MAC": ("mac_bank.json",),
    "mac": ("mac.json", "mac.safetensors"),
    "gist": ("gist.json", "gist.safetensors"),
    "memory": ("memograft.json", "adapter_model.safetensors", "adapter_config.json"),
    "datastore": ("header.json", "sources.jsonl"),
    "vector store": ("passages.sqlite3", "vectors-*.faiss"),
    "bank": ("*/memograft.json",),
}


def check(folder: Path, *, quiet: bool) -> dict[str, object]:
    """Print the damaged files of a folder unless `quiet`, and return JSON values.

    Raises:
        StoreError: it is none of these, or a store that another program has locked.
    """
    kind = next((kind for kind, files in _KINDS.items() if any(any(folder.glob(file)) for file in files)), None)
    if kind is None:
        raise StoreError(
            f"{folder} must be a saved memory, a bank, a gist, a MAC or its bank, a datastore or a vector store, and "
            "has the files of none; check the path"
        )
    found = _inspected(kind, folder)
    if not quiet:
        for message in found.damaged.values():
            out().print(Text(message), soft_wrap=True)
        if not found.damaged:
            out().print(Text(f"{folder}: a {kind}, {_said(found)}"), soft_wrap=True)
    return {
        "folder": str(folder),
        "kind": kind,
        "damaged": {str(file): message for file, message in found.damaged.items()},
        "without_checksums": [str(file) for file in found.unsummed],
    }


def _inspected(kind: str, folder: Path) -> Findings:
    if kind == "bank of MAC":
        from memograft.memory.mac.bank import inspected as mac_bank

        return mac_bank(folder)
    if kind == "mac":
        from memograft.memory.mac.folder import inspected as mac

        return mac(folder)
    if kind == "gist":
        from memograft.memory.gist.folder import inspected as gist

        return gist(folder)
    if kind in ("memory", "bank"):
        from memograft.memory.folder import inspected as memory

        folders = [folder] if kind == "memory" else sorted(file.parent for file in folder.glob("*/memograft.json"))
        each = [memory(one) for one in tqdm(folders, disable=len(folders) < _MANY, leave=False)]
        damaged = {file: message for found in each for file, message in found.damaged.items()}
        return Findings(damaged, [file for found in each for file in found.unsummed])
    if kind == "datastore":
        from memograft.rtd.verify import inspected as datastore

        return datastore(folder)
    from memograft.passages.verify import inspected as vector_store

    return vector_store(folder)


def _said(found: Findings) -> str:
    if not found.unsummed:
        return "nothing is damaged"
    files = ", ".join(file.name for file in found.unsummed)
    return f"from before there were checksums: {files} could not be compared; compact it, or save the memory again"
