"""Checks of the arguments of `MemograftVectorStore`, before anything is read or written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from memograft.errors import SettingsError
from memograft.passages.checks import check_count, check_share

MMR_OPTIONS = ("mmr_prefetch_factor", "mmr_prefetch_k", "mmr_threshold")
BY_WORDS = (VectorStoreQueryMode.TEXT_SEARCH, VectorStoreQueryMode.SPARSE)
_PREFETCH = 4.0  # candidates of MMR per node of the result, as in LlamaIndex's other stores


def refuse_unknown(method: str, kwargs: Mapping[str, Any], known: Collection[str] = ()) -> None:
    """Refuse keyword arguments that are not used."""
    for name in kwargs.keys() - set(known):
        takes = f"takes {', '.join(sorted(known))}" if known else "takes none"
        raise SettingsError(f"`{method}` {takes} besides its own arguments, got {name!r}; leave it out")


def checked_embedding(node: BaseNode, position: int, dimension: int | None) -> list[float]:
    """Return a node's embedding; refuse a node without one, or with another length than `dimension`."""
    where = f"nodes[{position}] (id {node.node_id!r})"
    if node.embedding is None:
        raise SettingsError(f"{where} must have an embedding, got None; pass it through an embedding model first")
    if dimension is not None and len(node.embedding) != dimension:
        raise SettingsError(
            f"{where} must have an embedding of {dimension} numbers, as the other nodes in the store, got "
            f"{len(node.embedding)}; embed all nodes with one model"
        )
    return node.embedding


def check_query(query: VectorStoreQuery) -> None:
    """Refuse modes and options that this store does not have."""
    mode = VectorStoreQueryMode
    if query.mode not in (mode.DEFAULT, mode.MMR, mode.HYBRID, *BY_WORDS):
        name = getattr(query.mode, "value", query.mode)
        raise SettingsError(
            f"`mode` must be default, mmr, hybrid, text_search or sparse, got {name!r}; pass one of these"
        )
    if query.query_embedding is None and query.mode not in BY_WORDS:
        raise SettingsError(
            "`query_embedding` must be an embedding, got None; query through VectorStoreIndex, or embed the question"
        )
    if query.mode in (mode.HYBRID, *BY_WORDS):
        checked_question(query)
    if query.alpha is not None and query.mode == mode.HYBRID:
        raise SettingsError(
            f"`alpha` is not for this store, got {query.alpha!r}; leave it out, because ranks have no weights"
        )
    for name in ("similarity_top_k", "sparse_top_k", "hybrid_top_k"):
        if name == "similarity_top_k" or getattr(query, name) is not None:
            check_count(name, getattr(query, name), "2 is usual")
    for name in ("output_fields", "embedding_field"):
        if getattr(query, name) is not None:
            raise SettingsError(f"`{name}` is not for this store, got {getattr(query, name)!r}; leave it out")


def checked_question(query: VectorStoreQuery) -> str:
    """Return the text of the question."""
    if not isinstance(query.query_str, str):
        raise SettingsError(f"`query_str` must be the question, got {query.query_str!r}; pass it to search by words")
    return query.query_str


def mmr_weight(query: VectorStoreQuery, options: Mapping[str, Any]) -> float:
    """Return the weight of similarity against variety, in [0, 1]."""
    threshold = options.get("mmr_threshold", query.mmr_threshold)
    if threshold is None:
        return 0.5
    check_share("mmr_threshold", threshold)
    return float(threshold)


def mmr_candidates(k: int, options: Mapping[str, Any]) -> int:
    """Return the number of most similar nodes from which MMR selects `k`."""
    fetch, factor = options.get("mmr_prefetch_k"), options.get("mmr_prefetch_factor")
    if fetch is not None and factor is not None:
        raise SettingsError(
            f"`mmr_prefetch_k` and `mmr_prefetch_factor` set the same number, got {fetch!r} and {factor!r}; leave one "
            "out"
        )
    if fetch is None:
        factor = _PREFETCH if factor is None else factor
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor < float("inf"):
            raise SettingsError(f"`mmr_prefetch_factor` must be a number of at least 1, got {factor!r}; 4 is usual")
        return int(k * factor)
    check_count("mmr_prefetch_k", fetch, "20 is usual")
    return max(k, int(fetch))


def require_local(fs: Any) -> None:
    """Refuse an fsspec file system that is not the local one."""
    if fs is not None and "file" not in getattr(fs, "protocol", ()):
        raise SettingsError(f"a store is a folder of the local file system, got fs={fs!r}; copy the folder afterwards")
