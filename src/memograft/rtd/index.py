"""The K entries nearest to hidden states, per head: looked up, then measured exactly.

    h (G, D) ──> H slices of D / H ──> candidates by FAISS ──> exact squared distances to them ──> the K nearest

"flat" compares with every key, straight on the memory map. The other kinds propose candidates, of which the keys
themselves, in float64, decide: so distances do not depend on the kind, nor on what else is in the batch. Entries that
came after an index was trained are compared one by one. Knows nothing of models and sources.
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

# Entries below which an index is not worth training; 256 codes per subquantizer take 39 vectors each.
_LEAST = {"hnsw": 1_000, "sq8": 1_000, "ivfpq": 10_000}
_CANDIDATES = {"flat": 1, "hnsw": 2, "sq8": 2, "ivfpq": 4}  # times K
_AT_ONCE = 16  # queries: from 20 on FAISS multiplies matrices, whose rounding depends on the others
_ROWS = 16_384  # keys per step wherever many are read
_ENDS = 1 << 20
_UNINDEXED = 0.2  # share of the entries that may be compared one by one before an index is trained anew


class FaissIndex(Protocol):
    """What is used of a FAISS index, whatever its kind."""

    def train(self, vectors: FloatArray, /) -> None:
        """Learn from (n, d) what the vectors are like."""

    def add(self, vectors: FloatArray, /) -> None:
        """Take (n, d) in, behind those that are there."""

    def search(self, queries: FloatArray, k: int, /, *, params: object) -> tuple[FloatArray, NDArray[np.int64]]:
        """(G, d) -> squared distances and numbers (G, k), -1 where there are fewer."""
        ...


class Nearest(NamedTuple):
    """The K nearest entries of G queries, per head.

    Attributes:
        ids: (G, H, K) numbers of entries, -1 where an index found fewer.
        distances: (G, H, K) squared L2 distances between slices, ascending, float64; infinite where there is none.
        closest: (G,) squared L2 distance between whole vectors of the nearest entry; with more than one head, of the
            nearest of the heads' nearest.
    """

    ids: NDArray[np.int64]
    distances: NDArray[np.float64]
    closest: NDArray[np.float64]


class Neighbours(NamedTuple):
    """The K nearest entries of G hidden states, per head.

    Attributes:
        distances: (G, H, K) squared L2 distances between slices, float64; infinite where there is no entry.
        closest: (G,) squared L2 distance between whole states of the nearest; see `Nearest`.
        values: (G, H, K) tokens that followed.
        sources: (G, H, K) numbers of sources, for `Datastore.source`.
        positions: (G, H, K) places in the sources' answers.
    """

    distances: NDArray[np.float64]
    closest: NDArray[np.float64]
    values: NDArray[np.int32]
    sources: NDArray[np.int32]
    positions: NDArray[np.int32]

    @classmethod
    def none(cls, queries: int, heads: int) -> Neighbours:
        """What an empty datastore finds."""
        nothing = np.zeros((queries, heads, 0), np.int32)
        return cls(nothing.astype(np.float64), np.full(queries, np.inf), nothing, nothing, nothing)


def check_kind(kind: object) -> None:
    """Refuse an unknown kind of index."""
    if kind not in get_args(IndexKind):
        raise SettingsError(f'`index` must be "flat", "hnsw", "ivfpq" or "sq8", got {kind!r}; "flat" is exact')


class KeyIndex:
    """Searches (N, D) keys.

    Args:
        keys: all entries' hidden states, dead ones included; a memory map or an array.
        kind: decides how many candidates are measured.
        heads: H, into which D must divide.
        trained: a FAISS index per head of the first `covered` entries; empty for none.
        covered: how many.
    """

    def __init__(
        self, keys: FloatArray, kind: IndexKind, heads: int = 1, trained: Sequence[FaissIndex] = (), covered: int = 0
    ) -> None:
        count, dimension = keys.shape
        self.heads, self.covered, self._kind = heads, covered if trained else 0, kind
        self._keys, self._width = keys, dimension // heads
        self._slices = keys.reshape(count, heads, self._width)
        self._trained = list(trained)
        # FAISS needs a head's slices side by side: a copy in memory where there is more than one head.
        rest = self._slices[self.covered :]
        self._rest = [rest[:, 0]] if heads == 1 else [np.ascontiguousarray(rest[:, h]) for h in range(heads)]

    def search(self, queries: FloatArray, k: int, dead: NDArray[np.bool_] | None) -> Nearest:
        """Return the K nearest of (G, D); `dead` (N,) marks entries that are not to be found."""
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
        """(G, D / H) -> (G, C) numbers of entries, -1 where there are fewer."""
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
    """An index of what a datastore's files hold: from its own files or, where these are behind or damaged, anew.

    Raises:
        SettingsError: D cannot be divided into so many heads.
        StoreCorruptError: a file is damaged, and another may not (`read_only`) or could not be written.
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
    """Build an index per head over all of `keys`, write each, and return what the header says of them.

    Returns None where it is not worth it: "flat", or too few entries.

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
        StoreCorruptError: a file is missing, shorter or longer, or its ends are damaged.
    """
    if wrong := misfits(made, folder):
        raise StoreCorruptError(next(iter(wrong.values())))
    faiss = _faiss()
    # Adding to a mapped index would abort the process; nothing here does.
    return [faiss.read_index(str(folder / about["name"]), faiss.IO_FLAG_MMAP_IFC) for about in made["files"]]


def misfits(made: IndexFiles, folder: Path, *, whole: bool = False) -> dict[Path, str]:
    """The files of an index that are not what the header says, and the sentence that says so; by their ends, or all."""
    found = {}
    for about in made["files"]:
        file = folder / about["name"]
        fits = file.exists() and (file.stat().st_size, _checksum(file)) == (about["bytes"], about["crc32"])
        if not fits or (whole and "crc32_whole" in about and crc32(file) != about["crc32_whole"]):
            found[file] = (
                f"{file} is missing or damaged: it is not what the header says; open the datastore for writing and "
                "search it, which builds it anew"
            )
    return found


def _new(kind: IndexKind, dimension: int, count: int) -> FaissIndex:
    faiss = _faiss()
    index: FaissIndex
    if kind == "sq8":
        index = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_8bit)
    elif kind == "hnsw":  # a graph over 8-bit codes: the keys themselves are at hand
        graph = faiss.IndexHNSWSQ(dimension, faiss.ScalarQuantizer.QT_8bit, 32)
        graph.hnsw.efConstruction = 100
        index = graph
    else:
        codes = next(m for m in range(max(1, dimension // 8), 0, -1) if dimension % m == 0)
        lists = max(1, min(int(count**0.5), count // 39))
        index = faiss.IndexIVFPQ(faiss.IndexFlatL2(dimension), dimension, lists, codes, 8)
    return index


def _exact(queries: FloatArray, keys: FloatArray, k: int, dead: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """(G, d) among (n, d) -> (G, min(k, n)); FAISS reads the keys where they are."""
    faiss = _faiss()
    k = min(k, len(keys))
    distances, ids = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    selector = None if dead is None else _alive(dead)
    sizes = queries.shape[1], len(queries), len(keys), k
    pointers = [faiss.swig_ptr(array) for array in (queries, keys, distances, ids)]
    faiss.knn_L2sqr(pointers[0], pointers[1], *sizes, pointers[2], pointers[3], None, selector)
    return ids


def _alive(dead: NDArray[np.bool_]) -> object:
    """A FAISS selector of what is not dead."""
    packed = np.packbits(~dead, bitorder="little")
    selector = _faiss().IDSelectorBitmap(packed)
    selector.keep = packed  # FAISS holds a bare pointer to it
    return selector


def _checksum(file: Path) -> int:
    """CRC-32 of a file's first and last MiB: a whole index would take longer to sum up than to open."""
    with open(file, "rb") as stream:
        first = zlib.crc32(stream.read(_ENDS))
        stream.seek(max(0, file.stat().st_size - _ENDS))
        return zlib.crc32(stream.read(_ENDS), first)


def _faiss() -> ModuleType:
    """Import FAISS when it is first needed. A module of any kind: the stubs it ships do not know half of it."""
    import faiss

    return faiss
