"""Find the K entries nearest to hidden states, per head: candidates from an index, then exact distances.

    h (G, D) ──> H slices of D / H ──> candidates by FAISS ──> exact squared distances to them ──> the K nearest

"flat" compares with every key, on the memory map. The other kinds propose candidates, whose distances are computed from
the keys in float64. So distances do not depend on the kind of index or on the batch. Entries that were added after an
index was trained are compared one by one.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from memograft.errors import SettingsError, StoreCorruptError, StoreError
from memograft.passages.progress import progress_bar
from memograft.rtd.files import Files, IndexKind
from memograft.rtd.told import IndexFile, IndexFiles
from memograft.storage.disk import crc32

logger = logging.getLogger(__name__)

__all__ = ["KeyIndex", "Nearest", "Neighbours", "check_kind", "load", "make_index", "misfits", "train"]

FloatArray = NDArray[np.float32]

# Number of entries from which an index is trained; 256 codes per subquantizer need 39 vectors each.
_LEAST = {"hnsw": 1_000, "sq8": 1_000, "ivfpq": 10_000}
_CANDIDATES = {"flat": 1, "hnsw": 2, "sq8": 2, "ivfpq": 4}  # candidates, as multiples of K
_AT_ONCE = 16  # queries per search: from 20 on, FAISS rounds depending on the batch
_ROWS = 16_384  # keys read per step
_ENDS = 1 << 20
_UNINDEXED = 0.2  # fraction of entries outside the index from which it is trained again


class FaissIndex(Protocol):
    """The part of FAISS's index interface that is used."""

    def train(self, vectors: FloatArray, /) -> None:
        """Train on vectors (n, d)."""

    def add(self, vectors: FloatArray, /) -> None:
        """Append vectors (n, d)."""

    def search(self, queries: FloatArray, k: int, /, *, params: object) -> tuple[FloatArray, NDArray[np.int64]]:
        """(G, d) -> squared distances and numbers (G, k), -1 if there are fewer."""
        ...


class Nearest(NamedTuple):
    """The K nearest entries of G queries, per head.

    Attributes:
        ids: (G, H, K) numbers of entries, -1 if an index found fewer.
        distances: (G, H, K) squared L2 distances between slices, ascending, float64; infinite if there is none.
        closest: (G,) squared L2 distance between whole vectors to the nearest entry; with several heads, to the nearest
            of the heads' first entries.
    """

    ids: NDArray[np.int64]
    distances: NDArray[np.float64]
    closest: NDArray[np.float64]


class Neighbours(NamedTuple):
    """The K nearest entries of G hidden states, per head.

    Attributes:
        distances: (G, H, K) squared L2 distances between slices, float64; infinite if there is no entry.
        closest: (G,) squared L2 distance between whole states to the nearest entry; see `Nearest`.
        values: (G, H, K) next tokens of the entries.
        sources: (G, H, K) numbers of sources, for `Datastore.source`.
        positions: (G, H, K) positions in the sources' answers.
    """

    distances: NDArray[np.float64]
    closest: NDArray[np.float64]
    values: NDArray[np.int32]
    sources: NDArray[np.int32]
    positions: NDArray[np.int32]

    @classmethod
    def none(cls, queries: int, heads: int) -> Neighbours:
        """The result for an empty datastore."""
        nothing = np.zeros((queries, heads, 0), np.int32)
        return cls(nothing.astype(np.float64), np.full(queries, np.inf), nothing, nothing, nothing)


def check_kind(kind: object) -> None:
    """Refuse an unknown kind of index."""
    if kind not in get_args(IndexKind):
        raise SettingsError(f'`index` must be "flat", "hnsw", "ivfpq" or "sq8", got {kind!r}; "flat" is exact')


class KeyIndex:
    """Searches (N, D) keys.

    Args:
        keys: all entries' hidden states, including deleted ones; a memory map or an array.
        kind: determines the number of candidates.
        heads: H, which divides D.
        trained: a FAISS index per head over the first `covered` entries; may be empty.
        covered: number of entries in the indexes.
    """

    def __init__(
        self, keys: FloatArray, kind: IndexKind, heads: int = 1, trained: Sequence[FaissIndex] = (), covered: int = 0
    ) -> None:
        count, dimension = keys.shape
        self.heads, self.covered, self._kind = heads, covered if trained else 0, kind
        self._keys, self._width = keys, dimension // heads
        self._slices = keys.reshape(count, heads, self._width)
        self._trained = list(trained)
        # FAISS needs the slices of a head to be contiguous, so with several heads they are copied to memory.
        rest = self._slices[self.covered :]
        self._rest = [rest[:, 0]] if heads == 1 else [np.ascontiguousarray(rest[:, h]) for h in range(heads)]

    def search(self, queries: FloatArray, k: int, dead: NDArray[np.bool_] | None) -> Nearest:
        """Return the K nearest of (G, D); `dead` (N,) marks entries to skip."""
        count = len(self._keys)
        k = min(k, count - (0 if dead is None else int(dead.sum())))
        wanted = min(k * _CANDIDATES[self._kind], count)
        queries = np.ascontiguousarray(queries, np.float32)
        by_head = queries.reshape(len(queries), self.heads, self._width)
        found = [self._candidates(np.ascontiguousarray(by_head[:, h]), h, wanted, dead) for h in range(self.heads)]
        ids = np.stack(found, 1)  # (G, H, C)
        keys = self._slices[ids.clip(0), np.arange(self.heads)[None, :, None]].astype(np.float64)
        distances = ((keys - by_head[:, :, None]) ** 2).sum(-1)
        distances[ids < 0] = np.inf
        order = np.lexsort((ids, distances))[..., :k]
        ids, distances = np.take_along_axis(ids, order, -1), np.take_along_axis(distances, order, -1)
        ids[np.isinf(distances)] = -1
        return Nearest(ids, distances, self._closest(queries, ids, distances))

    def _closest(
        self, queries: FloatArray, ids: NDArray[np.int64], distances: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        if self.heads == 1:
            return np.asarray(distances[:, 0, 0])
        whole = ((self._keys[ids[:, :, 0].clip(0)].astype(np.float64) - queries[:, None]) ** 2).sum(-1)
        return np.asarray(np.where(ids[:, :, 0] < 0, np.inf, whole).min(1))

    def _candidates(self, queries: FloatArray, head: int, k: int, dead: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        """(G, D / H) -> (G, C) numbers of entries, -1 if there are fewer."""
        parts = []
        for start in range(0, len(queries), _AT_ONCE):
            part, found = queries[start : start + _AT_ONCE], []
            if self._trained:
                parameters = self._parameters(head, k, dead)
                found.append(self._trained[head].search(part, min(k, self.covered), params=parameters)[1])
            if len(self._rest[head]):
                rest = _exact(part, self._rest[head], k, None if dead is None else dead[self.covered :])
                found.append(np.where(rest < 0, -1, rest + self.covered))
            parts.append(np.concatenate(found, 1))
        return np.concatenate(parts)

    def _parameters(self, head: int, k: int, dead: NDArray[np.bool_] | None) -> object:
        faiss, index = _faiss(), self._trained[head]
        selector = None if dead is None else _alive(dead[: self.covered])
        if isinstance(index, faiss.IndexHNSW):
            return faiss.SearchParametersHNSW(sel=selector, efSearch=max(64, 2 * k))
        if isinstance(index, faiss.IndexIVF):
            return faiss.SearchParametersIVF(sel=selector, nprobe=min(32, index.nlist))
        return faiss.SearchParameters(sel=selector)


def make_index(files: Files, heads: int, *, read_only: bool, progress: bool, written: bool) -> KeyIndex:
    """The index of a datastore, from its files; if these are out of date or damaged, it is trained again.

    Raises:
        SettingsError: D is not divisible by `heads`.
        StoreCorruptError: a file is damaged, and cannot be written again (or must not, `read_only`).
        StoreError: a file must be `written` and could not be.
    """
    header, keys, folder = files.header, files.entries.keys, files.folder
    if header.dimension % heads:
        raise SettingsError(f"`heads` must divide D={header.dimension}, got {heads}; 1 compares whole states")
    made = header.indexes.get(str(heads), IndexFiles(entries=0, files=[]))
    behind = len(keys) - made["entries"] > _UNINDEXED * len(keys)
    if not read_only and (behind or misfits(made, folder)):
        try:
            built = train(keys, header.index, heads, folder, header.generation, progress)
            if built is not None:
                files.commit(indexes={**header.indexes, str(heads): built})
                made = built
        except (OSError, RuntimeError, StoreError) as error:  # FAISS reports a full disk as a RuntimeError
            if written:
                raise StoreError(
                    f"an index could not be written to {folder} ({error}); the entries are safe and searches compare "
                    "them one by one, so free some space: the next change writes it"
                ) from error
            logger.warning("searching %s without an index, which could not be written: %s", folder, error)
    return KeyIndex(keys, header.index, heads, load(made, folder), made["entries"])


def train(
    keys: FloatArray, kind: IndexKind, heads: int, folder: Path, generation: int, progress: bool
) -> IndexFiles | None:
    """Train an index per head over all of `keys`, write each, and return their description for the header.

    Returns None if no index is needed: for "flat", or for few entries.

    Raises:
        OSError, RuntimeError: a file could not be written.
    """
    if kind == "flat" or len(keys) < _LEAST[kind]:
        return None
    faiss, files = _faiss(), list[IndexFile]()
    count, dimension = keys.shape
    slices = keys.reshape(count, heads, -1)
    sample = slice(None, None, max(1, count // 100_000))
    with progress_bar(count * heads, "Indexing", "entry", progress) as bar:
        for head in range(heads):
            index = _new(kind, dimension // heads, count)
            bar.set_postfix_str("training")
            index.train(np.ascontiguousarray(slices[sample, head]))
            bar.set_postfix_str("")
            for start in range(0, count, _ROWS):
                index.add(np.ascontiguousarray(slices[start : start + _ROWS, head]))
                bar.update(min(_ROWS, count - start))
            file = folder / f"index-{kind}-{generation}-{count}-{heads}-{head}.faiss"
            draft = file.with_suffix(".new")
            try:
                faiss.write_index(index, str(draft))
                draft.replace(file)
            finally:
                draft.unlink(missing_ok=True)
            size = file.stat().st_size
            files.append({"name": file.name, "bytes": size, "crc32": _checksum(file), "crc32_whole": crc32(file)})
    return {"entries": count, "files": files}


def load(made: IndexFiles, folder: Path) -> list[FaissIndex]:
    """Map the indexes that `train` has written.

    Raises:
        StoreCorruptError: a file is missing, has another length, or is damaged at its ends.
    """
    if wrong := misfits(made, folder):
        raise StoreCorruptError(next(iter(wrong.values())))
    faiss = _faiss()
    # Adding to a mapped index would abort the process; nothing here does that.
    return [faiss.read_index(str(folder / about["name"]), faiss.IO_FLAG_MMAP_IFC) for about in made["files"]]


def misfits(made: IndexFiles, folder: Path, *, whole: bool = False) -> dict[Path, str]:
    """Files of an index that do not match the header, with an error message. Checks their ends, or all with `whole`."""
    found = {}
    for about in made["files"]:
        file = folder / about["name"]
        fits = file.exists() and (file.stat().st_size, _checksum(file)) == (about["bytes"], about["crc32"])
        if not fits or (whole and "crc32_whole" in about and crc32(file) != about["crc32_whole"]):
            found[file] = (
                f"{file} is missing or damaged: it does not match the header; open the datastore for writing and "
                "search it, which builds the index again"
            )
    return found


def _new(kind: IndexKind, dimension: int, count: int) -> FaissIndex:
    faiss = _faiss()
    index: FaissIndex
    if kind == "sq8":
        index = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_8bit)
    elif kind == "hnsw":  # 8-bit codes suffice, because distances come from the keys
        graph = faiss.IndexHNSWSQ(dimension, faiss.ScalarQuantizer.QT_8bit, 32)
        graph.hnsw.efConstruction = 100
        index = graph
    else:
        codes = next(m for m in range(max(1, dimension // 8), 0, -1) if dimension % m == 0)
        lists = max(1, min(int(count**0.5), count // 39))
        index = faiss.IndexIVFPQ(faiss.IndexFlatL2(dimension), dimension, lists, codes, 8)
    return index


def _exact(queries: FloatArray, keys: FloatArray, k: int, dead: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """(G, d) among (n, d) -> (G, min(k, n)). FAISS reads the keys in place."""
    faiss = _faiss()
    k = min(k, len(keys))
    distances, ids = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    selector = None if dead is None else _alive(dead)
    sizes = queries.shape[1], len(queries), len(keys), k
    pointers = [faiss.swig_ptr(array) for array in (queries, keys, distances, ids)]
    faiss.knn_L2sqr(pointers[0], pointers[1], *sizes, pointers[2], pointers[3], None, selector)
    return ids


def _alive(dead: NDArray[np.bool_]) -> object:
    """A FAISS selector of entries that are not dead."""
    packed = np.packbits(~dead, bitorder="little")
    selector = _faiss().IDSelectorBitmap(packed)
    selector.keep = packed  # FAISS does not keep a reference to it
    return selector


def _checksum(file: Path) -> int:
    """CRC-32 of a file's first and last MiB. Reading the whole index would take longer than opening it."""
    with open(file, "rb") as stream:
        first = zlib.crc32(stream.read(_ENDS))
        stream.seek(max(0, file.stat().st_size - _ENDS))
        return zlib.crc32(stream.read(_ENDS), first)


def _faiss() -> ModuleType:
    """Import FAISS when it is first needed. Untyped, because its stubs are incomplete."""
    import faiss

    return faiss
