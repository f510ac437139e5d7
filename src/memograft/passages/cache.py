"""Keep a store's vector index in sync with its database, in memory and on disk.

The index is a cache: if it is behind, damaged or missing, it is updated or rebuilt from the vectors in SQLite. Seqs are
never reused, so the update is a difference of two sets of seqs. An index file is written under a new name and becomes
valid by one commit in the database, so after a crash the old or the new file is valid. The caller locks, except for
`renew`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from memograft.errors import StoreError
from memograft.passages.db import Database
from memograft.passages.index import EXACT_BELOW, FloatArray, IdArray, IndexSettings, VectorIndex, best_first
from memograft.passages.progress import progress_bar
from memograft.storage.disk import crc32, sync
from memograft.storage.locks import ReadWriteLock

_LARGE = 10_000  # passages from which building an index shows a progress bar
_LOOKS = 3  # attempts: another process may replace the index file while it is read

logger = logging.getLogger(__name__)


class IndexCache:
    """The index of one store. `index` may be searched while `is_stale()` is false; `deletions` counts deletions.

    Args:
        database: the store's database.
        folder: where the index file is; None keeps it in memory.
        dimension: D.
        settings: the kind of index.
        read_only: map the file instead of reading it, never write it, and follow commits of other processes.
        progress: show a progress bar when building takes long.
    """

    def __init__(
        self,
        database: Database,
        folder: Path | None,
        dimension: int,
        settings: IndexSettings,
        *,
        read_only: bool,
        progress: bool,
    ) -> None:
        self._database = database
        self._folder = folder
        self._dimension = dimension
        self._settings = settings
        self._read_only = read_only
        self._progress = progress
        self._seen = database.data_version()
        self.deletions = 0  # number of commits that deleted passages
        self._behind = False  # whether a commit is not in the index yet
        self._gap = False  # whether an earlier commit than the one of `apply` is not either
        self._saved = False  # whether the file has the same content as the index
        loaded = self._load()
        self.index = loaded or self.build()
        if loaded:
            self._saved = True
            self.catch_up()

    def is_stale(self) -> bool:
        """Whether `catch_up` must be called before the next search."""
        return self._behind or (self._read_only and self._database.data_version() != self._seen)

    def catch_up(self) -> None:
        """Update the index from the database. If interrupted, it must be called again.

        Passages are indexed in the order of their seqs, so only seqs after the last indexed one can be new. Up to that
        one, passages have been deleted if and only if the database has fewer than the index. Counting them takes far
        less time than comparing the seqs.
        """
        seen = self._database.data_version()
        if not self.index.is_whole:
            self.replace(self.build())
        last = self.index.last_id()
        if self._database.count() - self._database.count("seq > ?", [last]) != len(self.index):
            gone = np.setdiff1d(self.index.ids(), self._database.seqs("seq <= ?", [last]), assume_unique=True)
            self.deletions += 1
            self.index.remove(gone.tolist())
        new = self._database.seqs("seq > ?", [last])
        self._add(self.index, new)
        self._saved = self._saved and not len(new)
        self._seen, self._behind = seen, False

    def _add(self, index: VectorIndex, seqs: IdArray) -> None:
        """Add these passages, in ascending order, from the database."""
        with progress_bar(len(seqs), "Indexing", "passage", self._progress and len(seqs) >= _LARGE) as bar:
            for found, vectors in self._database.vectors(seqs):
                index.add(found, vectors)
                bar.update(len(found))

    def expect(self) -> None:
        """Announce a commit. Until `apply` has followed it, searches call `catch_up` first."""
        self._gap, self._behind = self._behind, True

    def apply(self, gone: Sequence[int], new: Sequence[int], vectors: FloatArray) -> None:
        """Follow a commit of this process. If this fails, the commit is still valid, and the next search catches up."""
        self.deletions += bool(gone)
        self._saved = self._saved and not new  # deletions are found again when the file is loaded
        if self._gap:
            return
        try:
            self.index.remove(gone)
            self.index.add(np.array(new, np.int64), vectors)
        except (RuntimeError, MemoryError) as error:
            logger.warning("the vector index could not take a write yet: %s", error)
            return
        self._behind = False

    def build(self) -> VectorIndex:
        """Build a new index from the vectors in the database, thousands at a time; clusters come from a sample."""
        seqs = self._database.seqs()
        index = VectorIndex(self._dimension, self._settings, len(seqs))
        if not index.is_trained:
            self._train(index, seqs)
        self._add(index, seqs)
        return index

    def _train(self, index: VectorIndex, seqs: IdArray) -> None:
        size = min(index.training_size(), len(seqs))
        chosen = np.sort(np.random.default_rng(0).choice(seqs, size, replace=False, shuffle=False))
        sample, filled = np.empty((size, self._dimension), np.float32), 0
        with progress_bar(size, "Reading the sample", "passage", self._progress and len(seqs) >= _LARGE) as bar:
            for found, vectors in self._database.vectors(chosen):
                sample[filled : filled + len(found)] = vectors
                filled += len(found)
                bar.update(len(found))
            bar.set_postfix_str("training")
            index.train(sample[:filled])

    def replace(self, index: VectorIndex) -> None:
        """Use this index from now on."""
        self.index = index
        self._behind, self._saved = False, False

    def renew(self, lock: ReadWriteLock, *, always: bool = False) -> int:
        """Rebuild an index if most of it is dead or it can be trained now; return how many dead vectors it had.

        Searches continue meanwhile; the caller excludes other writers.
        """
        if not (always or self.index.needs_rebuild()):
            return 0
        dead, index = self.index.dead, self.build()
        with lock.writing():
            self.replace(index)
        return dead

    def find(self, vector: FloatArray, k: int, among: IdArray | None) -> tuple[FloatArray, IdArray]:
        """Search the index, or all vectors if it is approximate and would return too few."""
        index = self.index
        if among is not None and len(among) <= EXACT_BELOW and not index.is_exact:
            return self.score(vector, k, among)
        estimated = index.is_compressed
        scores, seqs = index.search(vector, k * self._settings.rerank if estimated else k, among)
        if len(seqs) < min(k, len(index) if among is None else len(among)):
            return self.score(vector, k, self._database.seqs() if among is None else among)
        return self.score(vector, k, seqs) if estimated else (scores, seqs)

    def score(self, vector: FloatArray, k: int, seqs: IdArray) -> tuple[FloatArray, IdArray]:
        """Compare (D,) with each of these passages, which is exact."""
        parts = [(vectors @ vector, found) for found, vectors in self._database.vectors(seqs)]
        scores = np.concatenate([part for part, _ in parts] or [np.zeros(0, np.float32)])
        found = np.concatenate([part for _, part in parts] or [np.zeros(0, np.int64)])
        return best_first(scores, found, k)

    def persist(self) -> None:
        """Write the index file, unless it is up to date or the index must be rebuilt.

        Raises:
            StoreError: the file could not be written. The old file, if any, stays valid, and nothing is lost.
        """
        if self._folder is None or self._saved or not self.index.is_whole:
            return
        last = self._database.settings().get("index_file", {"number": 0})
        file = index_file(self._folder, last["number"] + 1)
        try:
            checksum = self.index.save(file)
            sync(self._folder)
        except (RuntimeError, OSError) as error:  # FAISS reports a full disk as a RuntimeError
            file.unlink(missing_ok=True)
            raise StoreError(
                f"the index file {file} could not be written ({error}); the documents are safe in SQLite, so free some "
                "space and call persist() again"
            ) from error
        pointer = {"number": last["number"] + 1, "crc32": checksum, "settings": asdict(self._settings)}
        self._database.set(index_file=pointer)
        self._saved = True
        for other in self._folder.glob("vectors-*.faiss"):
            if other != file:
                other.unlink(missing_ok=True)

    def _load(self) -> VectorIndex | None:
        """Read or map the index file; None if there is none with these settings, or it is damaged."""
        for _ in range(_LOOKS):
            pointer: dict[str, Any] | None = self._database.settings().get("index_file")
            if self._folder is None or pointer is None or not self._settings.match(pointer["settings"]):
                return None
            file = index_file(self._folder, pointer["number"])
            try:
                if crc32(file) != pointer["crc32"]:
                    reason = "its checksum is wrong"
                    break
                return VectorIndex.load(file, self._dimension, self._settings, mapped=self._read_only)
            except FileNotFoundError:
                reason = "it is missing"
            except (RuntimeError, OSError) as error:
                reason = str(error)
                break
        logger.info("rebuilding the vector index from SQLite: %s cannot be used, %s", file, reason)
        return None


class NoIndex:
    """Replaces `IndexCache` in a store without vectors; its methods do nothing."""

    deletions = 0

    def is_stale(self) -> bool:
        """Never."""
        return False

    def catch_up(self) -> None:
        """Do nothing."""

    def find(self, *_: object) -> tuple[FloatArray, IdArray]:
        """Return no passages."""
        return np.zeros(0, np.float32), np.zeros(0, np.int64)

    def expect(self) -> None:
        """Do nothing."""

    def apply(self, *_: object) -> None:
        """Do nothing."""

    def renew(self, *_: object, **__: object) -> int:
        """Do nothing; there are no dead vectors."""
        return 0

    def persist(self) -> None:
        """Do nothing."""


def index_file(folder: Path, number: int) -> Path:
    """The index file with that number."""
    return folder / f"vectors-{number}.faiss"
