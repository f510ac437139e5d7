"""Memories as LoRA folders for servers that load adapters: vLLM and SGLang.

    <out>/<hash>/   adapter_config.json and adapter_model.safetensors as PEFT writes them, and memograft_export.json:
                    which memory it is, for which model, and how exact. <hash> is of the first two files, so a folder
                    never changes, and another version of a memory has another path
    <out>/<name>.json   the folder that a memory's id, or a name, stands for; the last export wins

A rank is filled up with zeros to one that the server takes, which changes nothing. A rank that is too large is cut by
SVD, which gives the nearest matrix of a lower rank (Eckart and Young), and the error is reported.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from memograft.errors import MemoryFormatError, SettingsError
from memograft.memory import folder
from memograft.storage.disk import JsonObject, is_sealed, sealed, told
from memograft.storage.publish import published

if TYPE_CHECKING:  # torch is imported where weights are changed
    from memograft.model.adapter import Adapter

__all__ = ["FILES", "HASH", "NAME", "RANKS", "Exported", "Server", "checked", "export", "fitted", "rank_for"]

Server = Literal["vllm", "sglang"]
RANKS: Mapping[Server, tuple[int, ...]] = {  # () if a server takes every rank
    "vllm": (1, 8, 16, 32, 64, 128, 256, 320, 512),  # MaxLoRARanks in vllm/config/lora.py of vLLM 0.33
    "sglang": (),
}
_CALLED: Mapping[Server, str] = {"vllm": "vLLM", "sglang": "SGLang"}
_CONFIG, _WEIGHTS, _ABOUT = FILES = ("adapter_config.json", "adapter_model.safetensors", "memograft_export.json")
HASH = re.compile(r"[0-9a-f]{32}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # it becomes the name of a file
_ELSEWHERE = {"gist.json": "gist", "mac.json": "mac", "mac_bank.json": "mac"}  # files of folders that are no memories


@dataclass(frozen=True)
class Exported:
    """An exported memory, as memograft_export.json has it.

    Attributes:
        memory: the id of the memory.
        folder: the LoRA folder.
        server: "vllm" or "sglang".
        base_model: the name under which the base model is served.
        fingerprint: of the model that the memory was made for.
        documents: ids of its documents.
        rank: of the exported adapter.
        memory_rank: of the memory.
        errors: projection -> |W - W'| / |W|, Frobenius norms; W is the change of the weight and W' the exported one.
        largest_error: the largest of them; 0 if the rank was not cut.
        left_out: settings of the memory that a server does not follow.
    """

    memory: str
    folder: Path
    server: Server
    base_model: str
    fingerprint: str
    documents: tuple[str, ...]
    rank: int
    memory_rank: int
    errors: Mapping[str, float]
    largest_error: float
    left_out: tuple[str, ...]


def export(
    path: Path,
    out: Path,
    server: Server = "vllm",
    *,
    base_model: str | None = None,
    max_rank: int | None = None,
    name: str | None = None,
) -> Exported:
    """Write a saved memory as a LoRA folder in `out`, and return what was written.

    Args:
        path: a folder of `MemoryHandle.save`, or an entry of a bank.
        out: a folder for any number of exported memories.
        server: what is to load it.
        base_model: the name under which the base model is served; None: the one that the memory was made with.
        max_rank: the server's largest rank; None: 512 for vLLM, any for SGLang.
        name: a name besides the memory's id.

    Raises:
        SettingsError: the rank or the name is invalid, or there is no name of a base model.
        MemoryFormatError: the memory is damaged, is not an adapter, or is one that the server would not apply; or a
            folder cannot be read or written.
    """
    if name is not None and not NAME.fullmatch(name):
        raise SettingsError(f"`name` must be up to 128 letters, digits, '.', '_' and '-', got {name!r}; choose another")
    rank_for(1, server, max_rank)  # refuses a wrong `max_rank` before weights are read
    adapter, about, config = _read(path, server)
    base_model = base_model or str(config.get("base_model_name_or_path") or "")
    if not base_model:
        raise SettingsError(
            f"`base_model` must be the name under which the base model is served, and memory {about['id']} was made "
            "with a model without a name; pass one"
        )
    rank = rank_for(adapter.rank, server, max_rank)
    fits, errors = fitted(adapter, rank)
    settings = about["settings"]
    with told(out, MemoryFormatError, "written"), tempfile.TemporaryDirectory() as made:
        draft = Path(made)
        folder.write_adapter(draft, fits, base_model, fan_in_fan_out=bool(config.get("fan_in_fan_out")))
        _in_order(draft / _CONFIG)
        exported = Exported(
            memory=str(about["id"]),
            folder=out / _hash(draft),
            server=server,
            base_model=base_model,
            fingerprint=str(about["fingerprint"]),
            documents=tuple(str(document["id"]) for document in about["documents"]),
            rank=rank,
            memory_rank=adapter.rank,
            errors=errors,
            largest_error=max(errors.values()),
            left_out=tuple(name for name in ("gate", "contrast", "cad") if settings.get(name)),
        )
        text = json.dumps(sealed(asdict(exported) | {"folder": exported.folder.name}), indent=1)
        (draft / _ABOUT).write_text(text, encoding="utf-8")
        with published(exported.folder) as place:
            for file in FILES:
                shutil.copyfile(draft / file, place / file)
        for one in {exported.memory, name} - {None}:
            _point(out / f"{one}.json", exported.folder.name)
    return exported


def rank_for(rank: int, server: Server, max_rank: int | None = None) -> int:
    """The rank of an exported memory: the smallest that the server takes, or its largest.

    Raises:
        SettingsError: `max_rank` is not a rank of the server.
    """
    allowed = RANKS[server]
    if max_rank is not None and max_rank < 1:
        raise SettingsError(f"`max_rank` must be at least 1, got {max_rank}")
    if not allowed:
        return min(rank, max_rank or rank)
    if max_rank is not None and max_rank not in allowed:
        raise SettingsError(
            f"`max_rank` must be one of {', '.join(map(str, allowed))}, which {_CALLED[server]} takes as "
            f"max_lora_rank, got {max_rank}"
        )
    return min(r for r in allowed if r >= min(rank, max_rank or allowed[-1]))


def fitted(adapter: Adapter, rank: int) -> tuple[Adapter, dict[str, float]]:
    """The adapter with another rank, and each change's relative error: 0 if zeros were added.

    A larger rank is filled up with zeros. For a smaller one, lora_b (out, R) = Qb Rb and lora_a^T (in, R) = Qa Ra; the
    SVD of Rb Ra^T (R, R) is that of the change, in the bases Qb and Qa.
    """
    import torch

    from memograft.model.adapter import Adapter

    a, b, errors = {}, {}, {}
    more = rank - adapter.rank
    for name, first in adapter.lora_a.items():
        last = adapter.lora_b[name]
        if more >= 0:
            a[name] = torch.nn.functional.pad(first, (0, 0, 0, more))
            b[name] = torch.nn.functional.pad(last, (0, more))
            errors[name] = 0.0
            continue
        qb, rb = torch.linalg.qr(last.double())
        qa, ra = torch.linalg.qr(first.double().T)
        u, values, v = torch.linalg.svd(rb @ ra.T, full_matrices=False)
        root = values[:rank].sqrt()  # both factors get the same size, which suits servers that round them
        a[name] = (root[:, None] * (v[:rank] @ qa.T)).float()
        b[name] = ((qb @ u[:, :rank]) * root).float()
        whole = float(values.norm())
        errors[name] = float(values[rank:].norm()) / whole if whole else 0.0
    return Adapter(a, b), errors


def checked(path: Path) -> JsonObject:
    """The memograft_export.json of an exported memory whose files are as they were written.

    Raises:
        MemoryFormatError: a file is missing or damaged.
    """
    with told(path, MemoryFormatError, "read", "export the memory again"):
        try:
            about: JsonObject = json.loads((path / _ABOUT).read_bytes())
            whole = is_sealed(about)
        except (ValueError, AttributeError, RecursionError) as e:
            raise folder.damaged(path / _ABOUT, e) from e
        if not whole or _hash(path) != path.name or about.get("folder") != path.name:
            raise MemoryFormatError(f"{path} is damaged (its checksum is wrong); export the memory again")
    return about


def _read(path: Path, server: Server) -> tuple[Adapter, JsonObject, JsonObject]:
    """The weights, memograft.json and adapter_config.json of a memory that a server can apply."""
    import torch

    called = _CALLED[server]
    for file, kind in _ELSEWHERE.items():
        if (path / file).is_file():
            raise _refused(f"{path}, of kind {kind},", called)
    with told(path, MemoryFormatError, "read"):
        if (path / folder.ABOUT).is_file() and (wrong := folder.inspected(path).damaged):
            raise MemoryFormatError("\n".join(wrong.values()))
        adapter, carried, about = folder.read(path, torch.device("cpu"), torch.float32)
        kind = about["settings"].get("kind")
        if carried is not None or (adapter is None and kind != "fastmem"):
            raise _refused(f"memory {about['id']}, of kind {kind},", called)
        if adapter is None:
            raise MemoryFormatError(
                f"memory {about['id']} has no weights to export: {about['report']['reason']}; memorize again"
            )
        try:
            config = json.loads((path / _CONFIG).read_bytes())
            transposed = bool(config.get("fan_in_fan_out"))
        except (ValueError, AttributeError, RecursionError) as e:
            raise folder.damaged(path / _CONFIG, e) from e
    if reason := _ignored(adapter, server, transposed):
        raise MemoryFormatError(
            f"{reason}, and memory {about['id']} has such; answer with Memograft's engine, or memorize with another "
            "model"
        )
    return adapter, about, config


def _ignored(adapter: Adapter, server: Server, transposed: bool) -> str | None:
    """Which weights of a memory a server does not apply, if there are any; it may not say so itself."""
    if server == "vllm" and transposed:  # its models with Conv1D do not support LoRA
        return "vLLM applies no LoRA to transposed weights (Conv1D, as GPT-2 has)"
    if server == "sglang":  # LoRAAdapter._process_weight in sglang/srt/lora/lora.py of SGLang 0.5.23
        other = next((name for name in adapter.lora_a if not re.search(r"layers\.\d+\.", name)), None)
        return other and f"SGLang ignores weights without `layers.<number>.` in their name, such as {other}"
    return None


def _refused(what: str, called: str) -> MemoryFormatError:
    return MemoryFormatError(
        f"{called} loads LoRA adapters only, and {what} is not one; memorize its documents with FastMem() and export "
        "that memory"
    )


def _in_order(file: Path) -> None:
    """Sort a config's keys and lists, whose order would change from one process to the next, and so the hash."""
    config = json.loads(file.read_bytes())
    config["target_modules"].sort()
    file.write_text(json.dumps(config, indent=1, sort_keys=True), encoding="utf-8")


def _hash(path: Path) -> str:
    return _digest((path / name).read_bytes() for name in (_CONFIG, _WEIGHTS))


def _digest(parts: Iterable[bytes]) -> str:
    sums = [hashlib.sha256(part).hexdigest() for part in parts]
    return hashlib.sha256("".join(sums).encode()).hexdigest()[:32]


def _point(file: Path, to: str) -> None:
    draft = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    draft.write_text(json.dumps({"folder": to}), encoding="utf-8")
    os.replace(draft, file)
