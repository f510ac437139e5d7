"""`MemograftVectorStore`: Memograft's store of passages (SQLite and FAISS) as LlamaIndex's vector store.

Nodes are added with their embeddings, and returned with text, metadata, relationships and hash. Filters are applied
before the search, so that a search returns the k best of all matching nodes.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE, NAMESPACE_SEP
from llama_index.core.vector_stores.types import (
    DEFAULT_PERSIST_DIR,
    DEFAULT_PERSIST_FNAME,
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.llms.memograft._filters import to_group
from llama_index.llms.memograft._store_checks import (
    BY_WORDS,
    MMR_OPTIONS,
    check_query,
    checked_embedding,
    checked_question,
    mmr_candidates,
    mmr_weight,
    refuse_unknown,
    require_local,
)
from llama_index.llms.memograft._stored import REF_DOC_ID, to_document, to_node
from memograft import IndexSettings
from memograft.errors import SettingsError, StoreError
from memograft.passages.checks import checked_ids
from memograft.passages.comparisons import where_of
from memograft.passages.copying import copy_store
from memograft.passages.db import FILE_NAME
from memograft.passages.embedders import Embedder, GivenVectors
from memograft.passages.index import IndexKind
from memograft.passages.vector_store import Hit, VectorStore


class MemograftVectorStore(BasePydanticVectorStore):
    """Vector store that searches nodes by embedding, by words, or by both, with `MetadataFilters`.

    The store is thread-safe, and its async methods do not block the event loop. A node replaces the one with the same
    id. Similarities are cosines. In a folder, nodes are on disk after `add` and `delete`, also if the process crashes.
    One process can write to it, and any number can open it with `read_only=True`. The mode that combines words and
    embedding finds most: `index.as_query_engine(vector_store_query_mode="hybrid")`.

    A folder without vectors, such as one of `memograft index`, is searched by words in all modes. It does not keep
    embeddings.

    Metadata must be JSON; tuples are returned as lists. Filters can use a node's metadata and the id of its source
    document as `doc_id`, `ref_doc_id` and `document_id`, unless the metadata has these keys.

    Args:
        path: folder of the store, created with the first node if it does not exist; None keeps everything in memory.
        index: "flat" (exact), "hnsw", "ivf" or "ivfpq", or `IndexSettings`; by default that of the store, or "flat".
        read_only: whether the store is opened only for reading. The index is memory-mapped, and changes by a writer are
            visible.
        embedder: embedder of the vectors, such as `MemograftEmbedding().embedder`, so that `memograft ask` and other
            programs can search the folder by text; by default unknown, and only the length of embeddings is checked.

    Raises:
        StoreLockedError: the folder is open for another writer.
        StoreCorruptError: a file of the folder is damaged or of another program.
        EmbedderMismatchError: the store has vectors of another embedder.
        StoreError: a store for `read_only` does not exist, or the folder cannot be used.

    Example:
        >>> from llama_index.core import Document, StorageContext, VectorStoreIndex
        >>> from llama_index.llms.memograft import MemograftEmbedding, MemograftVectorStore
        >>> context = StorageContext.from_defaults(vector_store=MemograftVectorStore())
        >>> pages = [Document(text="Paris is the capital of France."), Document(text="Bergamot is a citrus fruit.")]
        >>> index = VectorStoreIndex.from_documents(pages, context, embed_model=MemograftEmbedding())
        >>> index.as_retriever(similarity_top_k=1).retrieve("the capital of France")[0].text
        'Paris is the capital of France.'
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    stores_text: bool = True
    path: str | None = Field(default=None, description="Folder of the store; None keeps everything in memory.")
    index: IndexKind | IndexSettings | None = Field(default=None, description="Index for the vectors.")
    read_only: bool = Field(default=False, description="Refuse every write.")
    _store: VectorStore | None = PrivateAttr(default=None)
    _embedder: Embedder | None = PrivateAttr(default=None)
    _changing: Any = PrivateAttr(default_factory=threading.RLock)  # creation, writes and copies, one at a time

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        index: IndexKind | IndexSettings | None = None,
        read_only: bool = False,
        embedder: Embedder | None = None,
        **kwargs: Any,
    ) -> None:
        folder = None if path is None else os.fspath(path)
        super().__init__(**{**kwargs, "path": folder, "index": index, "read_only": read_only})
        self._embedder = embedder
        if embedder is not None or read_only:
            self._open(embedder)
        else:
            self._existing()

    @classmethod
    def class_name(cls) -> str:
        """The name in LlamaIndex's serialization and logs."""
        return "MemograftVectorStore"

    @property
    def client(self) -> VectorStore | None:
        """The core's store; None before the first node was added."""
        return self._store

    # opening ------------------------------------------------------------------------------------------------------

    def _open(self, embedder: Embedder | None) -> VectorStore:
        with self._changing:
            if self._store is None:
                self._store = VectorStore(
                    embedder, self.path, index=self.index, read_only=self.read_only, progress=False
                )
            return self._store

    def _existing(self) -> VectorStore | None:
        """Return the store; None before the first node was added, because its dimension is not known."""
        if self._store is None and self.path is not None and (Path(self.path) / FILE_NAME).exists():
            return self._open(None)
        return self._store

    def close(self) -> None:
        """Write the index file and close the store; later calls are errors."""
        if self._store is not None:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __getstate__(self) -> NoReturn:
        """Refuse pickling, because a copy without the open files would be empty."""
        raise TypeError(
            f"a MemograftVectorStore cannot be pickled, got the one {f'at {self.path}' if self.path else 'in memory'}; "
            "open its path with read_only=True in the other process"
        )

    # writing ------------------------------------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes with their embeddings, replacing those with the same id. After an error, none was added.

        Returns:
            Their ids, in order.

        Raises:
            SettingsError: a node has no embedding, one of another length, other content than text, or metadata that is
                not JSON.
            StoreReadOnlyError, StoreError: as the class.
        """
        refuse_unknown("add", kwargs)
        nodes = list(nodes)
        documents = [to_document(node, position) for position, node in enumerate(nodes)]
        if not nodes:
            return []
        with self._changing:
            known = self._existing()
            dimension = known.embedder.dimension if known else len(checked_embedding(nodes[0], 0, None))
            vectors = np.zeros((len(nodes), 0))  # for a store without vectors
            if dimension:
                vectors = np.array([checked_embedding(node, i, dimension) for i, node in enumerate(nodes)], np.float64)
            return (known or self._open(GivenVectors(dimension))).add(documents, vectors)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a source document; an unknown id is ignored.

        Raises:
            SettingsError: `ref_doc_id` is not a string.
        """
        refuse_unknown("delete", delete_kwargs)
        if not isinstance(ref_doc_id, str):
            raise SettingsError(f"`ref_doc_id` must be a string, got {ref_doc_id!r}; pass lists to delete_nodes")
        self._delete({REF_DOC_ID: ref_doc_id})

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete nodes by id, by filters, or by both; unknown ids are ignored.

        Raises:
            SettingsError: neither was given.
            FilterError: a value does not match the operator of its filter.
        """
        refuse_unknown("delete_nodes", delete_kwargs)
        if node_ids is None and not (filters and filters.filters):
            raise SettingsError("`delete_nodes` needs `node_ids` or `filters`, got neither; clear() deletes all nodes")
        with self._changing:
            self._delete(self._where(node_ids, None, filters))

    def clear(self) -> None:
        """Delete all nodes; new ones must have embeddings of the same length."""
        self._delete({})

    def _delete(self, where: dict[str, Any]) -> None:
        with self._changing:
            if store := self._existing():
                store.delete(where=where)

    # reading ------------------------------------------------------------------------------------------------------

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Return the nodes with these ids, in this order, that match the filters; without their embeddings.

        Without ids, all matching nodes are returned in the order in which they were added.

        Raises:
            FilterError: a value does not match the operator of its filter.
        """
        store = self._existing()
        if store is None:
            return []
        found = {document.id: document for document in store.find(self._where(node_ids, None, filters))}
        order = found if node_ids is None else dict.fromkeys(node_ids)
        return [to_node(found[id]) for id in order if id in found]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the `similarity_top_k` most similar nodes, best first; fewer only if fewer match ids and filters.

        Nodes are restricted by `node_ids`, `doc_ids` (source documents) and `filters`. Empty lists of ids do not
        restrict, because LlamaIndex's retrievers pass them. Similarities are cosines in [-1, 1]; with TEXT_SEARCH and
        SPARSE they are BM25, and with HYBRID the sum of 1 / (60 + rank) over the rankings by words and by embedding.

        Args:
            query: with mode DEFAULT, MMR, HYBRID (which finds most), TEXT_SEARCH or SPARSE. The latter two are the
                same: nodes that share words with `query_str`, up to `sparse_top_k` if given. HYBRID uses
                `hybrid_top_k` if given.
            kwargs: for MMR: `mmr_threshold` (also in the query): from 0, variety only, to 1, similarity only; default
                0.5. `mmr_prefetch_k`: number of most similar nodes to select from; or `mmr_prefetch_factor`: that
                number per node of the result (4).

        Raises:
            SettingsError: the mode needs an embedding or `query_str`, an embedding has another length, or a mode or an
                option does not exist.
            FilterError: a value does not match the operator of its filter.
            StoreError: the store is closed.
        """
        refuse_unknown("query", kwargs, MMR_OPTIONS)
        check_query(query)
        store = self._existing()
        if store is None:
            return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])
        hits = self._search(
            store, query, self._where(query.node_ids or None, query.doc_ids or None, query.filters), kwargs
        )
        return VectorStoreQueryResult(
            nodes=[to_node(hit.document) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.document.id for hit in hits],
        )

    def _search(
        self, store: VectorStore, query: VectorStoreQuery, where: dict[str, Any], options: dict[str, Any]
    ) -> list[Hit]:
        k = query.similarity_top_k
        if not store.embedder.dimension and query.mode == VectorStoreQueryMode.MMR:
            question = checked_question(query)
            return store.mmr(question, k, mmr_candidates(k, options), mmr_weight(query, options), where)
        if query.mode in BY_WORDS or not store.embedder.dimension:
            return store.search(checked_question(query), query.sparse_top_k or k, where, mode="text")
        vector = np.asarray(query.query_embedding, np.float64)
        if query.mode == VectorStoreQueryMode.HYBRID:
            return store.search(checked_question(query), query.hybrid_top_k or k, where, mode="hybrid", vector=vector)
        if query.mode == VectorStoreQueryMode.DEFAULT:
            return store.search_by_vector(vector, k, where)
        return store.mmr_by_vector(vector, k, mmr_candidates(k, options), mmr_weight(query, options), where)

    def _where(
        self, node_ids: Sequence[str] | None, doc_ids: Sequence[str] | None, filters: MetadataFilters | None
    ) -> dict[str, Any]:
        """Return one filter of the core for all of these; filters that the core lacks are evaluated to ids."""
        wheres: list[dict[str, Any]] = []
        if node_ids is not None:
            wheres.append({"$id": checked_ids(node_ids, "node_ids")})
        if doc_ids is not None:
            wheres.append({REF_DOC_ID: {"$in": checked_ids(doc_ids, "doc_ids")}})
        return where_of(to_group(filters), {"$and": wheres} if wheres else {}, self._existing())

    # files --------------------------------------------------------------------------------------------------------

    def persist(self, persist_path: str, fs: Any = None) -> None:
        """Write a store in memory to the folder `persist_path`, replacing a store in it.

        A store with a `path` is on disk already and stays there; its index file is updated.

        Raises:
            SettingsError: `fs` is not the local file system.
            StoreError: the folder cannot be written, has files of another program, or is open in another process.
        """
        require_local(fs)
        store = self._existing()
        if self.path is not None:
            if store is not None and not self.read_only:
                store.persist()
            return
        if store is None:
            Path(persist_path).mkdir(parents=True, exist_ok=True)
            return
        with self._changing:
            copy_store(store, persist_path, self.index)

    @classmethod
    def from_persist_path(cls, persist_path: str, fs: Any = None, read_only: bool = False) -> Self:
        """Open a folder that `persist` wrote; it becomes the store's `path`.

        Raises:
            SettingsError: `fs` is not the local file system.
            StoreError: the folder does not exist; otherwise as the class.
        """
        require_local(fs)
        if not Path(persist_path).exists():
            raise StoreError(f"{persist_path} does not exist; call `persist` with this path first, or check the path")
        return cls(persist_path, read_only=read_only)

    @classmethod
    def from_persist_dir(
        cls,
        persist_dir: str = DEFAULT_PERSIST_DIR,
        namespace: str = DEFAULT_VECTOR_STORE,
        fs: Any = None,
        read_only: bool = False,
    ) -> Self:
        """Open the store in a folder of `StorageContext.persist(persist_dir)`; otherwise as `from_persist_path`."""
        file = f"{namespace}{NAMESPACE_SEP}{DEFAULT_PERSIST_FNAME}"
        return cls.from_persist_path(os.path.join(persist_dir, file), fs, read_only)

    # async --------------------------------------------------------------------------------------------------------

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """`add` in a thread."""
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """`delete` in a thread."""
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """`delete_nodes` in a thread."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    async def aclear(self) -> None:
        """`clear` in a thread."""
        await asyncio.to_thread(self.clear)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """`get_nodes` in a thread."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """`query` in a thread."""
        return await asyncio.to_thread(self.query, query, **kwargs)
