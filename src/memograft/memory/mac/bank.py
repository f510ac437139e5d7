"""`MacBank`: the modulations of documents, in a folder with the MAC that made them.

mac/                          the trained MAC; see `mac/folder.py`
modulations-<hash>.safetensors   float16 (n, T, D), named by their content
mac_bank.json                 which rows are of which documents; SHA-256 of the others, and of itself

A document's modulation depends on the document only, so documents can be added in any order, and removed. The JSON file
is replaced atomically, after the others were written: it is the commit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Never, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from memograft.documents import Document, as_documents
from memograft.errors import MemoryFormatError, SettingsError
from memograft.memory.gist.compress import check_model, parts
from memograft.memory.mac import folder
from memograft.memory.mac.folder import MacAbout
from memograft.memory.mac.weights import MacWeights
from memograft.model.backbone import Backbone
from memograft.prompt.builder import PromptBuilder
from memograft.storage.disk import JsonObject, is_sealed, sealed, sync, told
from memograft.storage.locks import WriterLock
from memograft.storage.publish import published

__all__ = ["Entry", "MacBank"]

_FORMAT, _ABOUT, _MAC = 1, "mac_bank.json", "mac"
_TOGETHER = 32  # documents in one pass
_COMMIT = 16  # passes between commits
_FILES = 32  # of modulations; more are joined
T = TypeVar("T")


class Owner(Protocol):
    """An `Engine`: it owns a model, and decides who uses it at what time."""

    @property
    def fingerprint(self) -> str:
        """Of the model."""
        ...

    def with_model(self, call: Callable[[Backbone, PromptBuilder], T]) -> T:
        """Call a function with the model's parts, while no other work uses them."""
        ...


@dataclass(frozen=True)
class Entry:
    """A modulation of a bank.

    Attributes:
        ids: of the documents that it is made of: one, or several that were merged.
        file: that has it.
        row: in that file.
    """

    ids: tuple[str, ...]
    file: str
    row: int


class MacBank:
    """A bank of modulations. A writer at a time changes it; readers see what was committed.

    Args:
        path: its folder.
        mac: folder of a trained MAC, to make a new bank; it is copied into the bank. Left out, the bank must exist.
        lock_timeout: seconds to wait for another writer.

    Raises:
        MemoryFormatError: there is no bank, or it is damaged.
        SettingsError: the bank was made with another MAC.
    """

    def __init__(self, path: Path | str, mac: Path | str | None = None, lock_timeout: float = 10.0) -> None:
        self.path, self._timeout = Path(path), lock_timeout
        if mac is not None and not (self.path / _ABOUT).exists():
            self._make(Path(mac))
        self._read()
        self.mac: MacAbout = folder.about(self.path / _MAC)
        if mac is not None and folder.about(Path(mac)).id != self.mac.id:
            raise SettingsError(
                f"the bank in {self.path} was made with another MAC than {mac}, whose modulations mean something else; "
                "choose another folder for the bank, or leave `mac` out"
            )

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All modulations, in the order in which they were added."""
        return tuple(Entry(tuple(ids), file, row) for ids, file, row in self._read()["entries"])

    @property
    def ids(self) -> tuple[str, ...]:
        """The documents, in the order in which they were added."""
        return tuple(dict.fromkeys(id for entry in self.entries for id in entry.ids))

    @property
    def nbytes(self) -> int:
        """Size of the modulations in use, in bytes."""
        return len(self.entries) * self.mac.tokens * int(self.mac.width) * 2

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.ids)

    def add(
        self, owner: Owner, documents: Iterable[Document | str], *, most: int | None = None, progress: bool = True
    ) -> int:
        """Add documents that the bank does not have, with one pass each, and return how many they are.

        They are committed in parts: after an interruption, call it again with the same documents.

        Args:
            owner: the engine of the bank's model.
            documents: a document of more than W tokens has several modulations.
            most: modulations that the bank may have; after each part, the nearest are merged (see `merge`).
            progress: whether to show a progress bar.

        Raises:
            SettingsError: the bank belongs to another model.
            StoreLockedError: another writer has the bank.
        """
        if owner.fingerprint != self.mac.fingerprint:
            raise SettingsError(
                f"the bank in {self.path} belongs to another model (fingerprint {self.mac.fingerprint}, this model's "
                f"is {owner.fingerprint}); use that model, or make a bank for this one"
            )
        known = set(self.ids)
        new = list({d.id: d for d in as_documents(documents) if d.id not in known}.values())
        size = _TOGETHER * _COMMIT
        with tqdm(total=len(new), desc="documents", unit="", disable=not progress) as bar:
            for start in range(0, len(new), size):
                self._add(owner, new[start : start + size], bar)
                if most is not None:
                    self.merge(most)
        return len(new)

    def remove(self, ids: Iterable[str]) -> int:
        """Remove documents, and return how many were there.

        Raises:
            SettingsError: a document was merged with others, from which it cannot be separated.
        """
        gone = set(ids)
        with self._writing():
            before = self.entries
            mixed = [entry for entry in before if gone & set(entry.ids) and not gone >= set(entry.ids)]
            if mixed:
                raise SettingsError(
                    f"document {min(gone & set(mixed[0].ids))!r} was merged with {len(mixed[0].ids) - 1} others and "
                    "cannot be taken out alone; remove them together, or make the bank again"
                )
            there = gone & set(self.ids)
            self._commit([entry for entry in before if not gone & set(entry.ids)])
        return len(there)

    def merge(self, most: int) -> int:
        """Merge the two nearest modulations until there are at most `most`; return how many are left.

        Nearest by the cosine of their mean tokens. A merged one is the mean of its documents' modulations, token by
        token (arXiv 2403.04317 compares this with dropping and averaging at random).

        Raises:
            SettingsError: `most` is less than 1.
        """
        if most < 1:
            raise SettingsError(f"`most` must be at least 1 modulation, got {most}")
        with self._writing():
            entries = self.entries
            if len(entries) <= most:
                return len(entries)
            merged = _merged(self.modulations().float(), [entry.ids for entry in entries], most)
            ids, tokens = zip(*merged, strict=True)
            self._commit([], ids, torch.stack(tokens))
        return len(ids)

    def modulations(self) -> Tensor:
        """(K, T, D) float16: the modulations of all entries.

        Raises:
            MemoryFormatError: a file is missing or damaged.
        """
        while True:
            version = self.version
            try:
                return self._tokens(self.entries)
            except MemoryFormatError:
                if version == self.version:
                    raise  # else a writer has replaced the files meanwhile

    def weights(self, backbone: Backbone) -> MacWeights:
        """The trained MAC for a model; see `folder.read`."""
        return folder.read(self.path / _MAC, backbone)

    @property
    def version(self) -> str:
        """Changes with every commit."""
        file = self.path / _ABOUT
        with told(file, MemoryFormatError, "read", "name the folder of a MAC bank"):
            stat = file.stat()
        return f"{stat.st_ino} {stat.st_mtime_ns} {stat.st_size}"

    def _tokens(self, entries: Sequence[Entry]) -> Tensor:
        from safetensors.torch import load

        files, found = self._read()["files"], dict[str, Tensor]()
        for name in {entry.file for entry in entries}:
            with told(self.path / name, MemoryFormatError, "read", "restore it, or make the bank again"):
                data = (self.path / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != files[name]["sha256"]:
                raise _damaged(self.path / name, "its checksum is wrong")
            found[name] = load(data)["tokens"]
        none = torch.zeros(0, self.mac.tokens, self.mac.width, dtype=torch.float16)
        return torch.stack([found[entry.file][entry.row] for entry in entries]) if entries else none

    @contextmanager
    def _writing(self) -> Iterator[None]:
        lock = WriterLock(self.path / "writer.lock", self._timeout)
        try:
            yield
        finally:
            lock.release()

    def _make(self, mac: Path) -> None:
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise MemoryFormatError(
                f"{self.path} exists and is not a MAC bank, so it is not overwritten; choose another folder"
            )
        with told(self.path, MemoryFormatError, "written"), published(self.path) as draft:
            (draft / _MAC).mkdir()
            for file in folder.files(mac):
                shutil.copy2(file, draft / _MAC)
            what = {"format": _FORMAT, "files": {}, "entries": []}
            (draft / _ABOUT).write_text(json.dumps(sealed(what)), encoding="utf-8")

    def _add(self, owner: Owner, documents: Sequence[Document], bar: tqdm[Never]) -> None:
        def passes(backbone: Backbone, prompts: PromptBuilder) -> tuple[list[tuple[str, ...]], Tensor]:
            check_model(backbone)
            weights, ids, made = self.weights(backbone), list[tuple[str, ...]](), list[Tensor]()
            pad_id = prompts.tokenizer.pad_token_id or 0
            with torch.no_grad():
                for start in range(0, len(documents), _TOGETHER):
                    chosen = documents[start : start + _TOGETHER]
                    texts = [(d.id, text) for d in chosen for text in parts(prompts, d, weights.window)]
                    ids += [(id,) for id, _ in texts]
                    for first in range(0, len(texts), _TOGETHER):
                        own = [text for _, text in texts[first : first + _TOGETHER]]
                        made.append(weights.documents(backbone, own, pad_id).half().cpu())
                    bar.update(len(chosen))
            return ids, torch.cat(made)

        ids, made = owner.with_model(passes)
        with self._writing():
            known = set(self.ids)  # another writer may have added some meanwhile
            rows = [n for n, own in enumerate(ids) if own[0] not in known]
            self._commit(self.entries, [ids[n] for n in rows], made[rows])

    def _commit(self, entries: Sequence[Entry], ids: Sequence[Sequence[str]] = (), made: Tensor | None = None) -> None:
        """Write the entries that stay, and new ones with their modulations (n, T, D)."""
        from safetensors.torch import save

        wanted = {entry.file for entry in entries}
        files = {name: own for name, own in self._read()["files"].items() if name in wanted}
        rows: list[list[object]] = [[entry.ids, entry.file, entry.row] for entry in entries]
        if len(files) >= _FILES or 2 * len(entries) < sum(own["rows"] for own in files.values()):
            old = self._tokens(entries)  # one file instead of many, or of some with more removed than left
            ids = [*(entry.ids for entry in entries), *ids]
            made, rows, files = old if made is None else torch.cat([old, made.half()]), [], {}
        with told(self.path, MemoryFormatError, "written"):
            if made is not None and len(made):
                data = save({"tokens": made.half().contiguous()}, {"format": "pt"})
                digest = hashlib.sha256(data).hexdigest()
                name = f"modulations-{digest[:16]}.safetensors"
                self._replace(name, data)
                files[name] = {"sha256": digest, "rows": len(made)}
                rows += [[list(own), name, n] for n, own in enumerate(ids)]
            self._replace(_ABOUT, json.dumps(sealed({"format": _FORMAT, "files": files, "entries": rows})).encode())
            for file in self.path.glob("modulations-*.safetensors"):
                if file.name not in files:
                    file.unlink()

    def _replace(self, name: str, data: bytes) -> None:
        draft = self.path / f".{name}-{uuid.uuid4().hex}"
        try:
            draft.write_bytes(data)
            sync(draft)
            os.replace(draft, self.path / name)
        finally:
            draft.unlink(missing_ok=True)
        sync(self.path)

    def _read(self) -> JsonObject:
        file = self.path / _ABOUT
        if not file.is_file():
            raise MemoryFormatError(
                f"{self.path} has no {_ABOUT}; make a bank with MacBank({str(self.path)!r}, mac=FOLDER), or "
                "`memograft mac add`"
            )
        with told(file, MemoryFormatError, "read"):
            text = file.read_bytes()
        try:
            what: JsonObject = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise _damaged(file, e) from e
        if not isinstance(what, dict) or what.get("format") != _FORMAT or not is_sealed(what):
            raise _damaged(file, "its checksum or format is wrong")
        return what


def _merged(tokens: Tensor, ids: Sequence[tuple[str, ...]], most: int) -> list[tuple[tuple[str, ...], Tensor]]:
    """Merge the nearest of (K, T, D) until `most` are left; each with the ids of its documents."""
    tokens, own, weight = tokens.clone(), list(ids), torch.tensor([float(len(i)) for i in ids])
    there = torch.ones(len(tokens), dtype=torch.bool)
    directions = normalize(tokens.mean(1), dim=-1)
    near = directions @ directions.T
    near.fill_diagonal_(-2)
    for _ in range(len(tokens) - most):
        a, b = divmod(int(near.argmax()), len(tokens))
        total = weight[a] + weight[b]
        tokens[a] = (weight[a] * tokens[a] + weight[b] * tokens[b]) / total
        own[a], weight[a], there[b] = tuple(dict.fromkeys(own[a] + own[b])), total, False
        directions[a] = normalize(tokens[a].mean(0), dim=-1)
        near[a] = near[:, a] = (directions @ directions[a]).where(there, torch.tensor(-2.0))
        near[b] = near[:, b] = near[a, a] = -2
    return [(own[n], tokens[n]) for n in there.nonzero().flatten().tolist()]


def _damaged(file: Path, cause: object) -> MemoryFormatError:
    return MemoryFormatError(f"{file} is damaged ({cause}); restore it, or make the bank again")
