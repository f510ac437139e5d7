"""`Datastore`: hidden states of examples and the tokens that followed them; `Rtd` uses it during decoding.

It is built with one prefill per example, without training. Sources can be added and deleted, a crash at any point is
safe, and it is searched from disk. The formula is in `rtd/formula.py`, the folder's format in `rtd/files.py`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from memograft.errors import ModelMismatchError, SettingsError, StoreError, StoreReadOnlyError
from memograft.passages.checks import check_count
from memograft.passages.open import claim_folder
from memograft.passages.progress import progress_bar
from memograft.request import Source
from memograft.rtd.calibrate import calibrate
from memograft.rtd.examples import alike, checked, source_line, unknown
from memograft.rtd.files import HEADER, Entries, Files, Header, IndexKind, Place, read_header
from memograft.rtd.index import KeyIndex, Neighbours, check_kind, make_index
from memograft.rtd.keys import check_place, learn
from memograft.rtd.sources import Sources
from memograft.rtd.temporary import goes_with, new_folder
from memograft.rtd.told import Changes
from memograft.rtd.verify import inspected
from memograft.serving.host import Host
from memograft.storage.disk import is_there
from memograft.storage.locks import ReadWriteLock, WriterLock, made_anew_in_forks, refuse_fork
from memograft.storage.process import OfOneProcess

__all__ = ["Datastore"]

_COMMIT = 1.0  # seconds of work that a crash can lose


class Datastore(OfOneProcess, instead="open its folder in each process: Datastore.open(...)"):
    """Entries (hidden state, next token, source, position). Make one with `build` or `open`.

    Any number of threads may search it. There can be one writer at a time among all threads and processes.

    Example:
        >>> from memograft import Datastore, Engine, Request, Rtd
        >>> engine = Engine.from_pretrained("tiny")
        >>> store = Datastore.build(engine, [("What is the capital of Velmora?", "Torstad.")], progress=False)
        >>> answer = engine.answer("What is the capital of Velmora?", processors=[Rtd(store, weight=0.9)])
        >>> answer.text, answer.sources[0].source.text
        ('Torstad.', 'Torstad.')
    """

    def __init__(self, folder: Path, lock: WriterLock | None, header: Header, *, read_only: bool, owned: bool) -> None:
        self._folder, self._writer, self._read_only = folder, lock, read_only
        self._process = os.getpid()
        made_anew_in_forks(self._make_locks)
        self._settled = False  # whether the attributes match the files, with no change in progress or interrupted
        self._clean = True  # whether no interrupted change has appended anything or written the header
        self._settle(header)
        self._temporary = goes_with(self, folder) if owned else None

    @classmethod
    def build(
        cls,
        engine: Host,
        examples: Iterable[object],
        *,
        path: str | Path | None = None,
        place: Place = "ffn_input",
        index: IndexKind = "flat",
        stride: int | None = None,
        batch_size: int = 16,
        progress: bool = True,
        lock_timeout: float = 0.0,
    ) -> Datastore:
        """Make a datastore, or continue the one at `path`. Examples that it already has are skipped.

        Args:
            engine: the `Engine` whose model runs. It can answer other requests meanwhile.
            examples: (prompt, answer), (messages, answer), (documents, question, answer), raw texts, or mappings with
                `prompt`, `question` or `messages`, `answer`, `documents`, `text`, `id`, `metadata`.
            path: its folder; None for a temporary folder that is deleted with the datastore.
            place: "ffn_input" (which memories do not change) or "head_input" (the paper's).
            index: "flat" (exact), "hnsw", "ivfpq" or "sq8".
            stride: tokens between the starts of windows over a raw text; None for half a window.
            batch_size: examples in one prefill.
            progress: show a bar, on a terminal.
            lock_timeout: seconds to wait until another writer closes it; math.inf waits without limit.

        Raises:
            ModelMismatchError: the datastore at `path` belongs to another model or place.
            StoreLockedError, StoreCorruptError, StoreError: see `open`.
            SettingsError, PromptTooLongError: an example cannot be learned; those before it were learned.
        """
        check_kind(index)
        check_place(place)
        if path is None:
            folder, lock = new_folder(), None
        else:
            folder = Path(path)
            lock = claim_folder(folder, read_only=False, lock_timeout=lock_timeout)
        try:
            header = read_header(folder)
            new = Header(engine.fingerprint, place, 0, index)
            if header is not None and (header.index, header.place) != (index, place):
                raise ModelMismatchError(
                    f"{folder} holds keys of place {header.place!r} under index {header.index!r}, asked for {place!r} "
                    f"and {index!r}; pass these, or another `path`"
                )
            store = cls(folder, lock, header or new, read_only=False, owned=path is None)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        try:
            store.add(engine, examples, stride=stride, batch_size=batch_size, progress=progress)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def open(cls, path: str | Path, *, read_only: bool = False, lock_timeout: float = 0.0) -> Datastore:
        """Open a datastore that `build` made. Its arrays are memory-mapped. A reader sees its state at this moment.

        Raises:
            StoreCorruptError: a file is damaged, truncated or missing.
            StoreLockedError: it is open for writing elsewhere, and still is after `lock_timeout`.
            StoreError: there is no datastore.
        """
        folder = Path(path)
        if not is_there(folder / HEADER):
            raise StoreError(f"{folder} holds no datastore ({HEADER} is missing); make one with Datastore.build")
        lock = claim_folder(folder, read_only, lock_timeout)
        try:
            header = read_header(folder)
            assert header is not None
            return cls(folder, lock, header, read_only=read_only, owned=False)
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    @property
    def path(self) -> Path:
        """Its folder."""
        return self._folder

    @property
    def header(self) -> Header:
        """Model, place, dimension, counts and calibration, as on disk."""
        self._settle()
        return self._files.header

    def __len__(self) -> int:
        return self.header.entries - (0 if self._dead is None else int(self._dead.sum()))

    def add(
        self,
        engine: Host,
        examples: Iterable[object],
        *,
        stride: int | None = None,
        batch_size: int = 16,
        progress: bool = True,
    ) -> int:
        """Learn examples with new ids, and return their number. Changes by other threads wait.

        After a crash or an error, at most a second of work is lost; the same call again does the rest.
        """
        check_count("batch_size", batch_size)
        if stride is not None:
            check_count("stride", stride)
        with self._one_writer:
            self._begin()
            self.check(engine.fingerprint)
            return self._add(engine, examples, stride, batch_size, progress)

    def _add(
        self, engine: Host, examples: Iterable[object], stride: int | None, batch_size: int, progress: bool
    ) -> int:
        queue, added, last = unknown(checked(examples), self.ids()), 0, time.monotonic()
        total = len(examples) if isinstance(examples, Sized) else None
        try:
            with progress_bar(total, "Learning", "example", progress) as bar:
                for batch in alike(queue, batch_size):
                    for entries in learn(engine, batch, self._files.header.place, stride, batch_size):
                        self._files.append(entries)
                    self._files.append_sources([source_line(example.source) for example in batch])
                    added += len(batch)
                    bar.update(len(batch))
                    if time.monotonic() - last >= _COMMIT:
                        self._commit()
                        last = time.monotonic()
        except BaseException as error:
            self._files.forget()  # entries of the failed batch
            if not isinstance(error, StoreError):  # after a StoreError the commit would fail too
                self._commit()
            raise
        self._commit()
        self._finish(progress)
        return added

    def extend(self, entries: Entries, sources: Sequence[Source]) -> None:
        """Add entries that were computed elsewhere. Their source numbers are indices in `sources`."""
        with self._one_writer:
            self._begin()
            if twice := sorted({source.id for source in sources} & set(self.ids())):
                raise SettingsError(f"{self._folder} has sources of these ids already, got {twice[0]!r}; omit them")
            self._files.append(entries)
            self._files.append_sources([source_line(source) for source in sources])
            self._commit()
            self._finish(progress=False)

    def delete(self, ids: Iterable[str]) -> int:
        """Delete sources with all their entries, and return their number. `compact` frees the space."""
        wanted = set(ids)
        with self._one_writer:
            self._begin()
            gone = [number for number, source in self._sources.living() if source.id in wanted]
            if gone:
                self._commit(deleted=tuple(sorted({*self.header.deleted, *gone})))
            self._finish(progress=False)
        return len(gone)

    def compact(self, *, progress: bool = True) -> None:
        """Copy the remaining entries to new files and remove the old ones. This also adds missing checksums.

        Raises:
            StoreCorruptError: the files are damaged.
        """
        with self._one_writer:
            self._begin()
            if self._dead is not None or self.header.checksums is None:
                dead = self._dead if self._dead is not None else np.zeros(self.header.entries, bool)
                self._commit(**self._files.rewrite(~dead))
            self._finish(progress)

    def save(self, path: str | Path) -> Path:
        """Copy it to a new folder and return that. The header comes last: a partial copy is not a datastore."""
        target = Path(path)
        if is_there(target) and target.is_dir() and any(target.iterdir()):
            raise SettingsError(f"{target} is not empty, so it is not overwritten; choose another folder")
        self._settle()
        with self._lock.reading():
            self._files.copy(target)
        return target

    def ids(self) -> list[str]:
        """The ids of its sources, in the order in which they were added."""
        self._settle()
        return [source.id for _, source in self._sources.living()]

    def source(self, number: int) -> Source:
        """The source with a number that a search returned."""
        self._settle()
        return self._sources[number]

    def verify(self) -> list[Path]:
        """Read all of its files and compare them with their checksums. It can be used meanwhile. Opening checks less.

        Returns:
            The files without checksums: only in datastores made before there were any and not compacted since.

        Raises:
            StoreCorruptError: a file is damaged; the message names all of them.
            StoreError: it was temporary and is closed.
        """
        self._check_there()
        return inspected(self._folder).or_raise()

    def check(self, fingerprint: str) -> None:
        """Refuse another model, and a closed temporary datastore.

        Raises:
            ModelMismatchError: its keys are hidden states of another model.
            StoreError: it was temporary and is closed.
        """
        self._check_there()
        if self.header.fingerprint != fingerprint:
            raise ModelMismatchError(
                f"the datastore {self._folder} was built with another model (fingerprint {self.header.fingerprint}, "
                f"this model's is {fingerprint}); build it with this engine"
            )

    def prepare(self, heads: int = 1, *, progress: bool = False, written: bool = False) -> None:
        """Prepare the index for this number of heads: map it, train it, or for exact search copy the heads' slices.

        If the index cannot be written, for example because the disk is full, searches work without one until the next
        change. With `written`, an error is raised instead.
        """
        if heads not in self._indexes:
            self._settle()
            try:
                with self._lock.writing():
                    read_only = self._read_only or os.getpid() != self._process
                    options = {"read_only": read_only, "progress": progress, "written": written}
                    self._indexes[heads] = make_index(self._files, heads, **options)
            except BaseException:
                self._clean = False  # the header may have been written
                raise

    def nearest(self, states: NDArray[np.float32], k: int, heads: int = 1) -> Neighbours:
        """The K entries nearest to each of (G, D) states, per head; K is 0 if there are no entries.

        Raises:
            ModelMismatchError: the states have another width.
        """
        while True:
            self._settle()
            with self._lock.reading():
                if not self._settled:  # a change was interrupted meanwhile
                    continue
                if not len(self):
                    return Neighbours.none(len(states), heads)
                if states.shape[1] != (width := self._files.header.dimension):
                    raise ModelMismatchError(
                        f"the datastore {self._folder} has keys of D={width}, got states of "
                        f"D={states.shape[1]}; build it with this model"
                    )
                if (index := self._indexes.get(heads)) is not None:
                    found = index.search(states, k, self._dead)
                    _, *rest = self._files.entries
                    return Neighbours(found.distances, found.closest, *(array[found.ids.clip(0)] for array in rest))
            self.prepare(heads)

    def close(self) -> None:
        """Release the writer's lock, and delete a temporary datastore. Waits for a thread that is changing it."""
        with self._one_writer:
            if self._writer is not None:
                self._writer.release()
                self._writer = None
            self._read_only = True
            if self._temporary is not None:
                self._temporary()

    def __enter__(self) -> Datastore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> None:
        """Start a change: check that it is allowed, and recover from an interrupted one."""
        self._check_writable()
        self._settled = self._settled and self._clean
        self._settle()
        self._clean = False

    def _commit(self, **changes: Unpack[Changes]) -> None:
        """Commit appended entries and these changes of the header, so that searches find them."""
        with self._lock.writing():
            self._settled = False
            self._files.commit(**changes)
            self._look()
            self._settled = True

    def _finish(self, progress: bool) -> None:
        """Update the calibration and the indexes after a change."""
        if self.header.calibration.get("entries") != len(self):
            calibration = calibrate(self._files.entries, self._dead) | {"entries": len(self)}
            self._files.commit(calibration=calibration)
        for heads in {1, *map(int, self.header.indexes)}:
            self.prepare(heads, progress=progress, written=True)
        self._files.clean()
        self._clean = True

    def _settle(self, header: Header | None = None) -> None:
        """After an interrupted change (Ctrl-C), reload the state on disk. Waits for a change in progress."""
        while not self._settled:
            with self._lock.writing():
                if not self._settled:
                    header = header or read_header(self._folder) or self._files.header
                    self._files: Files = Files.current(self._folder, header)
                    self._look()
                    self._settled = True

    def _look(self) -> None:
        """Reset everything that was derived from the files."""
        self._indexes: dict[int, KeyIndex] = {}
        self._sources, header = Sources(self._files), self._files.header
        dead = np.isin(self._files.entries.sources, header.deleted) if header.deleted else None
        self._dead = dead if dead is not None and dead.any() else None  # (N,) which entries belong to deleted sources

    def _make_locks(self) -> None:
        self._lock = ReadWriteLock()
        self._one_writer = threading.RLock()  # one thread at a time appends, deletes, compacts or closes

    def _check_there(self) -> None:
        if self._temporary is not None and not self._temporary.alive:
            raise StoreError("the datastore was temporary and is closed; close it later, or build it with a `path`")

    def _check_writable(self) -> None:
        refuse_fork(self._folder, self._process)
        if self._read_only:
            raise StoreReadOnlyError(f"{self._folder} was opened read-only or is closed; open it again for writing")
