"""What `MemograftVectorStore` accepts: each argument is refused by name before anything is read or written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

from memograft.errors import SettingsError


def refuse_unknown(method: str, kwargs: Mapping[str, Any], known: Collection[str] = ()) -> None:
    """Refuse keyword arguments that nobody would read."""
    for name in kwargs.keys() - set(known):
        takes = f"takes {', '.join(sorted(known))}" if known else "takes none"
        raise SettingsError(f"`{method}` {takes} besides its own arguments, got {name!r}; leave it out")


def checked_embedding(node: BaseNode, position: int, dimension: int | None) -> list[float]:
    """Return a node's embedding; refuse none, and one of another length than `dimension`."""
    where = f"nodes[{position}] (id {node.node_id!r})"
    if node.embedding is None:
        raise SettingsError(f"{where} must have an embedding, got None; pass it through an embedding model first")
    if dimension is not None and len(node.embedding) != dimension:
        raise SettingsError(
            f"{where} must have an embedding of {dimension} numbers, as the others in the store, got "
            f"{len(node.embedding)}; embed all nodes with one model"
        )
    return node.embedding


def check_query(query: VectorStoreQuery) -> None:
    """Refuse what a query asks for and this store cannot do."""
    if query.mode not in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR):
        name = getattr(query.mode, "value", query.mode)
        raise SettingsError(f"`mode` must be default or mmr, got {name!r}; this store searches by embedding only")
    if query.query_embedding is None:
        raise SettingsError(
            "`query_embedding` must be an embedding, got None; ask through VectorStoreIndex, or embed it"
        )
    k = query.similarity_top_k
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise SettingsError(f"`similarity_top_k` must be a whole number of at least 1, got {k!r}; 2 is usual")
    for name in ("output_fields", "embedding_field"):
        if getattr(query, name) is not None:
            raise SettingsError(f"`{name}` is not for this store, got {getattr(query, name)!r}; leave it out")


def require_local(fs: Any) -> None:
    """Refuse an fsspec file system that is not the local one."""
    if fs is not None and "file" not in getattr(fs, "protocol", ()):
        raise SettingsError(f"a store is a folder of the local file system, got fs={fs!r}; copy the folder afterwards")
