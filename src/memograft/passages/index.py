"""The vector index of a store: maps int64 ids to unit vectors in FAISS, with deletion, filters and files.

Vectors are (N, D) float32 rows of length 1; results are inner products, which are cosines. The index can be rebuilt
from the database at any time. The caller locks: any number of searches at once, or one change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from memograft.errors import SettingsError
from memograft.storage.disk import crc32, sync

__all__ = ["EXACT_BELOW", "FloatArray", "IdArray", "IndexKind", "IndexSettings", "VectorIndex", "best_first"]

FloatArray = NDArray[np.float32]
IdArray = NDArray[np.int64]
IndexKind = Literal["flat", "hnsw", "ivf", "ivfpq"]

# Up to this many ids are scored one by one, which is exact, and faster than an approximate search with a filter.
EXACT_BELOW = 1000
_MIN_DEAD = 1000  # number of dead vectors below which the index is not rebuilt
_MAX_EF = 4096
_TRAINED = ("ivf", "ivfpq")  # kinds that are trained from `ivf_train_at` vectors on
_PQ_CENTROIDS = 256  # of each part of a vector, so that its code is one byte
_SEARCHING = ("hnsw_search", "nprobe", "rerank")  # settings that an index file does not depend on


@dataclass(frozen=True)
class IndexSettings:
    """How a store finds neighbours.

    Attributes:
        kind: "flat" compares with every vector: exact, no build time. "hnsw" searches a graph: fastest, more memory.
            "ivf" searches only the `nprobe` nearest of about sqrt(N) clusters: fast, little more memory than flat.
            "ivfpq" is "ivf" with each vector compressed to `pq_bytes` in memory (product quantization), for millions
            of passages; the exact vectors stay in SQLite.
        hnsw_links: M, links per node. More find more, and need 8 bytes x M x N more memory.
        hnsw_build: efConstruction, candidates per inserted vector. More take longer to build and find more.
        hnsw_search: efSearch, candidates per question. Increased automatically for large k, filters and deletions.
        ivf_train_at: number of passages from which an "ivf" or "ivfpq" index is trained; before, it is searched as
            flat. It is trained again when it has four times as many, and by `compact()`.
        nprobe: clusters searched per question. Searching all would be exact, except for the compression.
        pq_bytes: bytes of a compressed vector, which must divide its dimension D. None: the smallest divisor that is at
            least D / 8.
        rerank: "ivfpq" takes this many candidates for each result and compares their exact vectors, so that scores are
            cosines. 1 only computes the scores of the passages that the compressed vectors chose.

    Raises:
        SettingsError: an unknown kind, a number that is not positive, or too few vectors to train "ivfpq".
    """

    kind: IndexKind = "flat"
    hnsw_links: int = 32
    hnsw_build: int = 100
    hnsw_search: int = 64
    ivf_train_at: int = 10_000
    nprobe: int = 64
    pq_bytes: int | None = None
    rerank: int = 10

    def __post_init__(self) -> None:
        if self.kind not in get_args(IndexKind):
            raise SettingsError(f'`index` must be "flat", "hnsw", "ivf" or "ivfpq", got {self.kind!r}; "flat" is exact')
        for name in ("hnsw_links", "hnsw_build", "hnsw_search", "ivf_train_at", "nprobe", "pq_bytes", "rerank"):
            value = getattr(self, name)
            if value is None and name == "pq_bytes":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingsError(f"`{name}` must be a whole number of at least 1, got {value!r}; leave it out")
        if self.kind == "ivfpq" and self.ivf_train_at < _PQ_CENTROIDS:
            raise SettingsError(
                f'"ivfpq" learns {_PQ_CENTROIDS} values for each part of a vector, so `ivf_train_at` must be at least '
                f'{_PQ_CENTROIDS}, got {self.ivf_train_at}; leave it out, or use "ivf"'
            )

    def check(self, dimension: int) -> None:
        """Refuse a `pq_bytes` that does not divide the dimension D of the vectors.

        Raises:
            SettingsError: it does not.
        """
        if self.kind == "ivfpq" and dimension % self.code_size(dimension):
            raise SettingsError(
                f"`pq_bytes` must divide the dimension of the vectors, {dimension}, got {self.pq_bytes}; "
                f"leave it out for {replace(self, pq_bytes=None).code_size(dimension)}"
            )

    def code_size(self, dimension: int) -> int:
        """Bytes of a compressed vector (D,)."""
        return self.pq_bytes or next(m for m in range(max(1, -(-dimension // 8)), dimension + 1) if dimension % m == 0)

    def match(self, stored: Mapping[str, object]) -> bool:
        """Whether these settings would build the same index as `stored` ones, which `asdict` returned."""
        wanted = asdict(self)
        found = {**asdict(IndexSettings()), **stored}  # older versions had fewer settings
        return {**found, **{name: wanted[name] for name in _SEARCHING}} == wanted


class VectorIndex:
    """Unit vectors with int64 ids that the caller never reuses.

    Removed vectors are only marked as dead and skipped by searches until the index is rebuilt, because HNSW cannot
    remove vectors, and the other kinds would move the whole array.

    Args:
        dimension: D.
        settings: the kind of index and its parameters.
        count: number of vectors it will be built with; decides whether "ivf" and "ivfpq" can be trained.
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
        """Whether vectors can be added. A new index of clusters must be trained first."""
        return bool(self._parts[0].is_trained)

    @property
    def is_exact(self) -> bool:
        """Whether searches compare with every vector."""
        faiss = _faiss()
        return all(isinstance(faiss.downcast_index(part.index), faiss.IndexFlat) for part in self._parts)

    @property
    def is_compressed(self) -> bool:
        """Whether scores are estimates, because vectors are compressed."""
        faiss = _faiss()
        return any(isinstance(faiss.downcast_index(part.index), faiss.IndexIVFPQ) for part in self._parts)

    @property
    def dead(self) -> int:
        """Number of removed vectors that still take space."""
        return len(self._dead)

    def needs_rebuild(self) -> bool:
        """Whether more than half is dead, or clusters can be computed for the first time, or from far more vectors."""
        if len(self._dead) > max(_MIN_DEAD, len(self)):
            return True
        if self.settings.kind not in _TRAINED:
            return False
        if self.is_exact:
            return len(self) >= self.settings.ivf_train_at
        return _clusters(len(self)) >= 2 * self._trained_clusters()

    def training_size(self) -> int:
        """Number of vectors to pass to `train`. FAISS requires 39 per cluster, and 39 x 256 for compression."""
        return max(64 * self._trained_clusters(), 256 * _PQ_CENTROIDS)

    def _trained_clusters(self) -> int:
        return int(_faiss().downcast_index(self._parts[0].index).nlist)

    def train(self, vectors: FloatArray) -> None:
        """Compute the clusters, and the values for compression, from (N, D) unit vectors."""
        self._parts[0].train(vectors)

    def ids(self) -> IdArray:
        """Return all ids, including dead ones, unsorted."""
        faiss = _faiss()
        return np.concatenate([faiss.vector_to_array(part.id_map) for part in self._parts])

    def last_id(self) -> int:
        """Return the highest id, also of dead ones; 0 if there are none."""
        return int(self.ids().max(initial=0))

    def add(self, ids: IdArray, vectors: FloatArray) -> None:
        """Add (N, D) unit vectors with N new ids."""
        if len(ids):
            self.is_whole = False
            self._parts[0].add_with_ids(np.ascontiguousarray(vectors), ids)
            self.is_whole = True

    def remove(self, ids: Iterable[int]) -> None:
        """Exclude these existing ids from all later searches."""
        faiss = _faiss()
        if dead := self._dead.union(ids):
            selector = faiss.IDSelectorBatch(np.fromiter(dead, np.int64, len(dead)))
            alive = faiss.IDSelectorNot(selector)
            alive.keep = selector  # FAISS does not keep a reference to it
            self._alive = alive
            self._dead = dead  # last, because the length tells whether a deletion was interrupted

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
    elif settings.kind in _TRAINED and count >= settings.ivf_train_at:
        shape, metric = (faiss.IndexFlatIP(dimension), dimension, _clusters(count)), faiss.METRIC_INNER_PRODUCT
        if settings.kind == "ivf":
            inner = faiss.IndexIVFFlat(*shape, metric)
        else:
            inner = faiss.IndexIVFPQ(*shape, settings.code_size(dimension), 8, metric)
            inner.pq.cp.min_points_per_centroid = 1  # FAISS would write a warning to stderr
    else:
        inner = faiss.IndexFlatIP(dimension)
    return faiss.IndexIDMap(inner)


def _clusters(count: int) -> int:
    """Number of clusters for N vectors."""
    return max(1, min(int(count**0.5), count // 39))


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
