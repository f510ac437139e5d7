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
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Never, Protocol, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from memograft.documents import Document, as_documents
from memograft.errors import MemoryFormatError, SettingsError
from memograft.memory.gist.compress import check_model, parts
from memograft.memory.mac import folder
from memograft.memory.mac.entries import Entry, Name, digest, merged
from memograft.memory.mac.folder import MacAbout
from memograft.memory.mac.weights import MacWeights
from memograft.model.backbone import Backbone
from memograft.prompt.builder import PromptBuilder
from memograft.storage.disk import Findings, JsonObject, is_sealed, sealed, sync, told
from memograft.storage.locks import WriterLock
from memograft.storage.publish import published

__all__ = ["Entry", "MacBank", "inspected", "mac_of", "version"]

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
        self.mac: MacAbout = mac_of(self.path)
        if mac is not None and folder.about(Path(mac)).id != self.mac.id:
            raise SettingsError(
                f"the bank in {self.path} was made with another MAC than {mac}, whose modulations mean something else; "
                "choose another folder for the bank, or leave `mac` out"
            )

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All modulations, in the order in which they were added."""
        return _entries(self._read())

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

        A document whose id the bank has with another text replaces that one.
        They are committed in parts: after an interruption, call it again with the same documents.

        Args:
            owner: the engine of the bank's model.
            documents: a document of more than W tokens has several modulations.
            most: modulations that the bank may have; after each part, the nearest are merged (see `merge`).
            progress: whether to show a progress bar.

        Raises:
            SettingsError: the bank belongs to another model, a document has no text, an id has two texts, a document
                that was merged with others has another text, or `most` is less than 1.
            StoreLockedError: another writer has the bank.
        """
        _check(most)
        if owner.fingerprint != self.mac.fingerprint:
            raise SettingsError(
                f"the bank in {self.path} belongs to another model (fingerprint {self.mac.fingerprint}, this model's "
                f"is {owner.fingerprint}); use that model, or make a bank for this one"
            )
        new = self.missing(documents)
        self._without({document.id for document in new})  # what cannot be replaced is refused before any pass
        size = _TOGETHER * _COMMIT
        with tqdm(total=len(new), desc="documents", unit="", disable=not progress) as bar:
            for start in range(0, len(new), size):
                self._add(owner, new[start : start + size], bar)
                if most is not None:
                    self.merge(most)
        if most is not None and not new:
            self.merge(most)
        return len(new)

    def missing(self, documents: Iterable[Document | str]) -> list[Document]:
        """The documents that the bank does not have, or has with another text; each id once.

        Raises:
            SettingsError: a document has no text, or an id has two texts.
        """
        given, known = dict[str, Document](), self._known()
        for document in as_documents(documents):
            if not document.text.strip():
                raise SettingsError(f"a document must have text to be added, got none in {document.id!r}; leave it out")
            if given.setdefault(document.id, document).text != document.text:
                raise SettingsError(
                    f"an id must stand for one text, got two for {document.id!r}; give each document an id of its own"
                )
        return [document for document in given.values() if known.get(document.id) != digest(document)]

    def remove(self, ids: Iterable[str]) -> int:
        """Remove documents, and return how many were there.

        Raises:
            SettingsError: a document was merged with others, from which it cannot be separated; or `ids` is one string.
        """
        if isinstance(ids, str):
            raise SettingsError(f"`ids` must be a list, got the string {ids!r}; write [{ids!r}]")
        gone = set(ids)
        with self._writing():
            there = gone & set(self.ids)
            if there:
                self._commit(self._without(there))
        return len(there)

    def merge(self, most: int) -> int:
        """Merge the two nearest modulations until there are at most `most`; return how many are left.

        Nearest by the cosine of their mean tokens. A merged one is the mean of those that it is made of, token by token
        (arXiv 2403.04317 compares this with dropping and averaging at random). It takes memory for K^2 cosines.

        Raises:
            SettingsError: `most` is less than 1.
        """
        _check(most)
        with self._writing():
            entries = self.entries
            if len(entries) <= most:
                return len(entries)
            own, tokens = merged(self.modulations().float(), [Name.of(entry) for entry in entries], most)
            self._commit([], own, tokens)
        return len(own)

    def modulations(self) -> Tensor:
        """(K, T, D) float16: the modulations of all entries.

        Raises:
            MemoryFormatError: a file is missing or damaged.
        """
        while True:
            what = self._read()
            try:
                return self._tokens(what, _entries(what))
            except MemoryFormatError:
                if what == self._read():
                    raise  # else a writer has replaced the files meanwhile

    def weights(self, backbone: Backbone) -> MacWeights:
        """The trained MAC for a model; see `folder.read`."""
        return folder.read(self.path / _MAC, backbone)

    def _tokens(self, what: JsonObject, entries: Sequence[Entry]) -> Tensor:
        from safetensors.torch import load

        files, found = what["files"], dict[str, Tensor]()
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
        files = folder.files(mac)
        with told(self.path, MemoryFormatError, "written"), published(self.path) as draft:
            (draft / _MAC).mkdir()
            made = (self.path / _ABOUT).exists()  # by another process, meanwhile
            for file in folder.files(self.path / _MAC) if made else files:
                shutil.copy2(file, draft / _MAC)
            if made:
                shutil.copy2(self.path / _ABOUT, draft)
            else:
                what = {"format": _FORMAT, "files": {}, "entries": []}
                (draft / _ABOUT).write_text(json.dumps(sealed(what)), encoding="utf-8")

    def _add(self, owner: Owner, documents: Sequence[Document], bar: tqdm[Never]) -> None:
        names, made, weights = list[Name](), list[Tensor](), list[MacWeights]()

        @torch.no_grad()
        def run(backbone: Backbone, prompts: PromptBuilder) -> None:
            check_model(backbone)
            if not weights:
                weights.append(self.weights(backbone))
            texts = [(Name.new(d), text) for d in chosen for text in parts(prompts, d, weights[0].window)]
            names.extend(own for own, _ in texts)
            for first in range(0, len(texts), _TOGETHER):
                own = [text for _, text in texts[first : first + _TOGETHER]]
                made.append(weights[0].documents(backbone, own, prompts.tokenizer.pad_token_id or 0).half().cpu())

        for start in range(0, len(documents), _TOGETHER):
            chosen = documents[start : start + _TOGETHER]
            owner.with_model(run)  # others may use the model between passes
            bar.update(len(chosen))
        with self._writing():
            known = self._known()  # another writer may have added some meanwhile
            rows = [n for n, own in enumerate(names) if not own.texts.items() <= known.items()]
            left = [names[n] for n in rows]
            self._commit(self._without({id for own in left for id in own.texts}), left, torch.cat(made)[rows])

    def _known(self) -> dict[str, str]:
        """The hash of each document's text."""
        return {id: text for entry in self.entries for id, text in zip(entry.ids, entry.texts, strict=True)}

    def _without(self, gone: Set[str]) -> list[Entry]:
        entries = self.entries
        mixed = [entry for entry in entries if gone & set(entry.ids) and not gone >= set(entry.ids)]
        if mixed:
            raise SettingsError(
                f"document {min(gone & set(mixed[0].ids))!r} was merged with {len(mixed[0].ids) - 1} others and "
                "cannot be taken out alone; remove them together, or make the bank again"
            )
        return [entry for entry in entries if not gone & set(entry.ids)]

    def _commit(self, entries: Sequence[Entry], names: Sequence[Name] = (), made: Tensor | None = None) -> None:
        """Write the entries that stay, and new ones with their modulations (n, T, D).

        Raises:
            SettingsError: a modulation has numbers that float16 cannot hold.
        """
        if made is not None and not made.half().isfinite().all():
            raise SettingsError("a modulation must have numbers below 65,504, got a larger one; train the MAC again")
        from safetensors.torch import save

        wanted = {entry.file for entry in entries}
        what = self._read()
        files = {name: own for name, own in what["files"].items() if name in wanted}
        rows: list[list[object]] = [[e.ids, e.texts, e.count, e.file, e.row] for e in entries]
        if len(files) >= _FILES or 2 * len(entries) < sum(own["rows"] for own in files.values()):
            old = self._tokens(what, entries)  # one file instead of many, or of some with more removed than left
            names = [*map(Name.of, entries), *names]
            made, rows, files = old if made is None else torch.cat([old, made.half()]), [], {}
        with told(self.path, MemoryFormatError, "written"):
            if made is not None and len(made):
                data = save({"tokens": made.half().contiguous()}, {"format": "pt"})
                digest = hashlib.sha256(data).hexdigest()
                name = f"modulations-{digest[:16]}.safetensors"
                self._replace(name, data)
                files[name] = {"sha256": digest, "rows": len(made)}
                rows += [[[*own.texts], [*own.texts.values()], own.count, name, n] for n, own in enumerate(names)]
            self._replace(_ABOUT, json.dumps(sealed({"format": _FORMAT, "files": files, "entries": rows})).encode())
            # Also what killed writers have left.
            for file in [*self.path.glob("*modulations-*.safetensors*"), *self.path.glob(f".{_ABOUT}-*")]:
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
        version(self.path)
        with told(file, MemoryFormatError, "read"):
            text = file.read_bytes()
        try:
            what: JsonObject = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise _damaged(file, e) from e
        if not isinstance(what, dict) or what.get("format") != _FORMAT or not is_sealed(what):
            raise _damaged(file, "its checksum or format is wrong")
        return what


def inspected(path: Path) -> Findings:
    """Check a bank's folder for damage, with the MAC in it."""
    found = folder.inspected(path / _MAC)
    try:
        MacBank(path).modulations()
    except MemoryFormatError as error:
        found.damaged[path / _ABOUT] = str(error)
    return found


def mac_of(path: Path | str) -> MacAbout:
    """The MAC of a bank.

    Raises:
        MemoryFormatError: there is no bank, or it is damaged.
    """
    version(path)
    return folder.about(Path(path) / _MAC)


def version(path: Path | str) -> str:
    """Changes with every commit to a bank.

    Raises:
        MemoryFormatError: there is no bank.
    """
    file = Path(path) / _ABOUT
    with told(file, MemoryFormatError, "read", "name the folder of a MAC bank"):
        if not file.is_file():
            raise MemoryFormatError(
                f"{path} has no {_ABOUT}; make a bank with MacBank({str(path)!r}, mac=FOLDER), or `memograft mac add`"
            )
        stat = file.stat()
    return f"{stat.st_ino} {stat.st_mtime_ns} {stat.st_size}"


def _entries(what: JsonObject) -> tuple[Entry, ...]:
    rows = what["entries"]
    return tuple(Entry(tuple(ids), tuple(texts), count, file, row) for ids, texts, count, file, row in rows)


def _check(most: int | None) -> None:
    if most is not None and most < 1:
        raise SettingsError(f"`most` must be at least 1 modulation, got {most}")


def _damaged(file: Path, cause: object) -> MemoryFormatError:
    return MemoryFormatError(f"{file} is damaged ({cause}); restore it, or make the bank again")
