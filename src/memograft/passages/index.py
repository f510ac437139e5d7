"""The vector index of a store: maps int64 ids to unit vectors in FAISS, with deletion, filters and files.

Vectors are (N, D) float32 rows of length 1; results are inner products, which are cosines. The index can be rebuilt
from the database at any time. The caller locks: any number of searches at once, or one change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from memograft.errors import SettingsError
from memograft.storage.disk import crc32, sync

__all__ = ["EXACT_BELOW", "FloatArray", "IdArray", "IndexKind", "IndexSettings", "VectorIndex", "best_first"]

FloatArray = NDArray[np.float32]
IdArray = NDArray[np.int64]
IndexKind = Literal["flat", "hnsw", "ivf"]

# Up to this many ids are scored one by one, which is exact, and faster than an approximate search with a filter.
EXACT_BELOW = 1000
_MIN_DEAD = 1000  # number of dead vectors below which the index is not rebuilt
_MAX_EF = 4096


@dataclass(frozen=True)
class IndexSettings:
    """How a store finds neighbours. The defaults suit up to a few million passages.

    Attributes:
        kind: "flat" compares with every vector: exact, no build time. "hnsw" searches a graph: fastest, more memory.
            "ivf" searches only the `nprobe` nearest of about sqrt(N) clusters: fast, little more memory than flat.
        hnsw_links: M, links per node. More find more, and need 8 bytes x M x N more memory.
        hnsw_build: efConstruction, candidates per inserted vector. More take longer to build and find more.
        hnsw_search: efSearch, candidates per question. Increased automatically for large k, filters and deletions.
        ivf_train_at: number of passages from which an "ivf" index is trained, on 39 vectors per cluster as FAISS
            requires; before, it is searched as flat. `compact()` trains it again.
        nprobe: clusters searched per question. Searching all would be exact.

    Raises:
        SettingsError: an unknown kind, or a number that is not positive.
    """

    kind: IndexKind = "flat"
    hnsw_links: int = 32
    hnsw_build: int = 100
    hnsw_search: int = 64
    ivf_train_at: int = 10_000
    nprobe: int = 16

    def __post_init__(self) -> None:
        if self.kind not in get_args(IndexKind):
            raise SettingsError(f'`index` must be "flat", "hnsw" or "ivf", got {self.kind!r}; "flat" is exact')
        for name in ("hnsw_links", "hnsw_build", "hnsw_search", "ivf_train_at", "nprobe"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingsError(f"`{name}` must be a whole number of at least 1, got {value!r}; leave it out")


class VectorIndex:
    """Unit vectors with int64 ids that the caller never reuses.

    Removed vectors are only marked as dead and skipped by searches until the index is rebuilt, because HNSW cannot
    remove vectors, and the other kinds would move the whole array.

    Args:
        dimension: D.
        settings: the kind of index and its parameters.
        count: number of vectors it will be built with; decides whether "ivf" can be trained.
        mapped: a FAISS index on a memory-mapped file. FAISS aborts the process when vectors are added to it, so they
            are added to a second, flat index.
    """

    def __init__(self, dimension: int, settings: IndexSettings, count: int = 0, mapped: Any = None) -> None:
        self.settings = settings
        self._dimension = dimension
        own = _new_index(dimension, IndexSettings() if mapped is not None else settings, count)
        self._parts = [own] if mapped is None else [own, mapped]
        self.is_whole = True  # False after an interrupted `add`: it must be rebuilt
        self._dead: set[int] = set()
        self._alive: Any = None  # FAISS selector without dead vectors; None if there are none

    def __len__(self) -> int:
        return sum(int(part.ntotal) for part in self._parts) - len(self._dead)

    @property
    def is_trained(self) -> bool:
        """Whether vectors can be added. A new "ivf" index must be trained first."""
        return bool(self._parts[0].is_trained)

    @property
    def is_exact(self) -> bool:
        """Whether searches compare with every vector."""
        faiss = _faiss()
        return all(isinstance(faiss.downcast_index(part.index), faiss.IndexFlat) for part in self._parts)

    @property
    def dead(self) -> int:
        """Number of removed vectors that still take space."""
        return len(self._dead)

    def needs_rebuild(self) -> bool:
        """Whether more than half is dead, or an "ivf" index is now large enough to be trained."""
        if len(self._dead) > max(_MIN_DEAD, len(self)):
            return True
        return self.settings.kind == "ivf" and self.is_exact and len(self) >= self.settings.ivf_train_at

    def training_size(self) -> int:
        """Number of vectors to pass to `train`; FAISS uses at most 256 per cluster."""
        faiss = _faiss()
        return 256 * int(faiss.downcast_index(self._parts[0].index).nlist)

    def train(self, vectors: FloatArray) -> None:
        """Compute the cluster centres of an "ivf" index from (N, D) unit vectors."""
        self._parts[0].train(vectors)

    def ids(self) -> IdArray:
        """Return all ids, including dead ones, unsorted."""
        faiss = _faiss()
        return np.concatenate([faiss.vector_to_array(part.id_map) for part in self._parts])

    def add(self, ids: IdArray, vectors: FloatArray) -> None:
        """Add (N, D) unit vectors with N new ids."""
        if len(ids):
            self.is_whole = False
            self._parts[0].add_with_ids(np.ascontiguousarray(vectors), ids)
            self.is_whole = True

    def remove(self, ids: Iterable[int]) -> None:
        """Exclude these existing ids from all later searches."""
        faiss = _faiss()
        self._dead.update(ids)
        if self._dead:
            dead = faiss.IDSelectorBatch(np.fromiter(self._dead, np.int64, len(self._dead)))
            alive = faiss.IDSelectorNot(dead)
            alive.keep = dead  # FAISS does not keep a reference to it
            self._alive = alive

    def search(self, vector: FloatArray, k: int, among: IdArray | None) -> tuple[FloatArray, IdArray]:
        """Return the cosines and ids of up to k neighbours of (D,), best first; `among` restricts the ids.

        An approximate index may return fewer than there are.
        """
        selector = self._alive if among is None else _selector(among)
        share = max(len(self) if among is None else len(among), 1) / max(len(self) + len(self._dead), 1)
        found = [
            part.search(vector[None], min(k, part.ntotal), params=self._parameters(part, k, selector, share))
            for part in self._parts
            if part.ntotal
        ]
        scores = np.concatenate([part_scores[0] for part_scores, _ in found] or [np.zeros(0, np.float32)])
        ids = np.concatenate([part_ids[0] for _, part_ids in found] or [np.zeros(0, np.int64)])
        held = ids >= 0  # FAISS pads with -1
        return best_first(scores[held], ids[held], k)

    def _parameters(self, part: Any, k: int, selector: Any, share: float) -> Any:
        """Parameters of one search; `share` is the fraction of the index that passes the selector."""
        faiss = _faiss()
        inner = faiss.downcast_index(part.index)
        if isinstance(inner, faiss.IndexHNSW):
            # Candidates that the selector rejects take places in the queue, so it is widened.
            wide = int(max(self.settings.hnsw_search, 2 * k) / share)
            return faiss.SearchParametersHNSW(sel=selector, efSearch=max(min(wide, _MAX_EF), k))
        if isinstance(inner, faiss.IndexIVF):
            return faiss.SearchParametersIVF(sel=selector, nprobe=min(self.settings.nprobe, inner.nlist))
        return faiss.SearchParameters(sel=selector)

    def save(self, file: Path) -> int:
        """Write the index to a new file, flush it to disk, and return its CRC-32.

        Raises:
            RuntimeError, OSError: the file could not be written.
        """
        faiss = _faiss()
        faiss.write_index(self._parts[0], str(file))
        checksum = crc32(file)
        sync(file)
        return checksum

    @classmethod
    def load(cls, file: Path, dimension: int, settings: IndexSettings, mapped: bool) -> VectorIndex:
        """Read a file of `save`. The caller must have compared its checksum, because FAISS trusts its input.

        Raises:
            RuntimeError: FAISS cannot read the file.
        """
        faiss = _faiss()
        if mapped:
            return cls(dimension, settings, mapped=faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC))
        index = cls(dimension, settings)
        index._parts = [faiss.read_index(str(file))]
        return index


def _faiss() -> Any:
    """Import FAISS when it is first needed. Untyped, because its stubs are incomplete."""
    import faiss

    return faiss


def _new_index(dimension: int, settings: IndexSettings, count: int) -> Any:
    """Make an empty index with our ids. IndexIDMap must wrap it while it is empty, or ids do not match vectors."""
    faiss = _faiss()
    if settings.kind == "hnsw":
        inner = faiss.IndexHNSWFlat(dimension, settings.hnsw_links, faiss.METRIC_INNER_PRODUCT)
        inner.hnsw.efConstruction = settings.hnsw_build
    elif settings.kind == "ivf" and count >= settings.ivf_train_at:
        clusters = max(1, min(int(count**0.5), count // 39))
        inner = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, clusters, faiss.METRIC_INNER_PRODUCT)
    else:
        inner = faiss.IndexFlatIP(dimension)
    return faiss.IndexIDMap(inner)


def _selector(ids: IdArray) -> Any:
    """A FAISS selector of these ids: a bitmap if that is not larger than the list, else a hash set."""
    faiss = _faiss()
    highest = int(ids.max(initial=0))
    if highest > 64 * len(ids):
        return faiss.IDSelectorBatch(ids)
    bits = np.zeros(highest + 1, bool)
    bits[ids] = True
    packed = np.packbits(bits, bitorder="little")
    selector = faiss.IDSelectorBitmap(packed)
    selector.keep = packed  # FAISS does not keep a reference to it
    return selector


def best_first(scores: FloatArray, ids: IdArray, k: int) -> tuple[FloatArray, IdArray]:
    """Sort by descending score, then by ascending id, and keep k."""
    order = np.lexsort((ids, -scores))[:k]
    return scores[order], ids[order]
