"""`MemograftVectorStore`: Memograft's store of passages as a LangChain `VectorStore`.

Takes and gives LangChain Documents. Async methods await the embeddings' own async methods and leave the store's work to
a thread; where a method embeds nothing, the one of LangChain's base class does just that. Knows no language models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from memograft import documents as core
from memograft.errors import SettingsError
from memograft.passages.checks import embedded
from memograft.passages.incoming import documents_of
from memograft.passages.index import IndexKind, IndexSettings
from memograft.passages.outside import aembedded, aembedded_query
from memograft.passages.vector_store import VectorStore as CoreStore

from langchain_memograft._embedder import embedder_of
from langchain_memograft._faiss_folder import read_faiss_folder
from langchain_memograft._passages import document_of, only, passages_of_documents, require_cosines, scored
from langchain_memograft.embeddings import MemograftEmbeddings

__all__ = ["MemograftVectorStore"]

Filter = Mapping[str, Any]
Metadatas = list[dict[str, Any]] | None
Vector = Any  # (D,) numbers: list[float], as LangChain has it, or an array
Scored = list[tuple[Document, float]]


class MemograftVectorStore(VectorStore):
    """Passages in SQLite and their vectors in FAISS: kept on the disk, filtered exactly, used from any thread.

    Scores are cosines: higher is closer. With an embedding, `mode="hybrid"` finds most: it joins the ranking by vectors
    with BM25's by words, which is all of `mode="text"` and of a store without an embedding; their scores are those of
    `memograft.Hit`. Retrievers take it too: `as_retriever(search_kwargs={"mode": "hybrid"})`. `filter` is a mapping
    such as `{"year": {"$gte": 1990}, "lang": "en"}`, with $eq $ne $gt $gte $lt $lte $in $nin $exists $and $or $not; a
    search gives the k best of all passages that match it. Metadata must be JSON. A document with an id that is there
    replaces it, and one without an id gets a new one.

    Opening reads files, and asks `embedding` for a vector unless `dimension` is given; in async code, open a store with
    `await MemograftVectorStore.afrom_texts([], embedding, path=...)`.

    Args:
        embedding: any LangChain embeddings; left out, those the store at `path` was built with, or none for a new
            store: it is searched by its words, and needs no model and no network.
        path: folder of the store, made if it is not there; None keeps everything in memory. One writer at a time may
            have it open, and any number of readers.
        index: "flat", "hnsw", "ivf", or `memograft.IndexSettings`; left out, what the store has, or
            "flat", which is exact.
        read_only: open without the right to write.
        dimension: D, the length of the vectors.
        batch_size: texts given to `embedding` at once.
        progress: show a progress bar on a terminal when something takes long.

    Attributes:
        store: the `memograft.VectorStore` below, for `count`, `compact`, `persist` and iterating.

    Raises:
        SettingsError: a setting that cannot work.
        EmbedderMismatchError: the store at `path` was built with other embeddings.
        StoreError: `read_only` without a store, a folder that cannot be used, or that another writer has open
            (StoreLockedError), or that is damaged or not a store's (StoreCorruptError).

    Example:
        >>> store = MemograftVectorStore()
        >>> ids = store.add_texts(["Paris is the capital of France.", "Bergamot is a citrus fruit."])
        >>> store.similarity_search("What is the capital of France?", k=1)[0].page_content
        'Paris is the capital of France.'
    """

    def __init__(
        self,
        embedding: Embeddings | None = None,
        *,
        path: str | Path | None = None,
        index: IndexKind | IndexSettings | None = None,
        read_only: bool = False,
        dimension: int | None = None,
        batch_size: int = 256,
        progress: bool = True,
    ) -> None:
        embedder = embedder_of(embedding, dimension)
        self._batch_size, self._progress = batch_size, progress
        try:
            self.store = CoreStore(
                embedder, path, index=index, read_only=read_only, batch_size=batch_size, progress=progress
            )
        except SettingsError as error:
            if embedding is not None or "`embedder=`" not in str(error):
                raise
            raise SettingsError(
                f"the store {path} was built with embeddings that only its owner can make ({error}); pass them as "
                "`embedding=`"
            ) from error
        own = MemograftEmbeddings(self.store.embedder) if self.store.embedder.dimension else None
        self._embeddings = own if embedding is None else embedding

    @property
    def embeddings(self) -> Embeddings | None:
        """What turns text into this store's vectors; None if it has none."""
        return self._embeddings

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: Metadatas = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Open a store, `kwargs` as the class takes them, and add texts to it."""
        passages = documents_of(texts, metadatas, ids)
        return cls._filled(embedding, kwargs, lambda store: store._add(passages))

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: Metadatas = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Open a store, `kwargs` as the class takes them, and add texts to it."""
        return await cls._afilled(documents_of(texts, metadatas, ids), embedding, kwargs)

    @classmethod
    def from_documents(cls, documents: list[Document], embedding: Embeddings | None = None, **kwargs: Any) -> Self:
        """Open a store, `kwargs` as the class takes them, and add documents to it; `ids=` goes with the documents."""
        passages = passages_of_documents(documents, kwargs.pop("ids", None))
        return cls._filled(embedding, kwargs, lambda store: store._add(passages))

    @classmethod
    async def afrom_documents(
        cls, documents: list[Document], embedding: Embeddings | None = None, **kwargs: Any
    ) -> Self:
        """Open a store, `kwargs` as the class takes them, and add documents to it; `ids=` goes with the documents."""
        return await cls._afilled(passages_of_documents(documents, kwargs.pop("ids", None)), embedding, kwargs)

    @classmethod
    def _filled(cls, embedding: Embeddings | None, options: dict[str, Any], fill: Callable[[Self], object]) -> Self:
        store = cls(embedding, **options)
        try:
            fill(store)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    async def _afilled(cls, passages: list[core.Document], embedding: Embeddings | None, options: Any) -> Self:
        store = await asyncio.to_thread(cls, embedding, **options)
        try:
            await store._aadd(passages)
        except BaseException:
            await store.aclose()
            raise
        return store

    @classmethod
    def from_faiss_folder(
        cls, folder: str | Path, embedding: Embeddings | None, *, index_name: str = "index", **kwargs: Any
    ) -> Self:
        """Convert a folder that `langchain_community`'s FAISS store wrote with `save_local`.

        Nothing is unpickled: `index.pkl` is read as plain data, and whatever else it holds is refused. The vectors are
        those of `index.faiss`, compared by cosine from now on, which ranks as the old store did if they had length 1.
        Documents keep their ids: converting again into the same `path` changes nothing.

        Args:
            folder: what was given to `save_local`. FAISS trusts `index.faiss`, so open folders of people you trust.
            embedding: the embeddings the folder was built with.
            index_name: what was given to `save_local`.
            kwargs: as the class takes them, such as `path`.

        Raises:
            StoreError: a file is missing, or its index gives no vectors back.
            StoreCorruptError: a file is damaged or holds more than plain data, or the two do not fit each other.
            SettingsError: `embedding` makes vectors of another length; otherwise as the class.
        """
        old = read_faiss_folder(folder, index_name)

        def fill(store: Self) -> None:
            old.vectors.add_to(store.store, old.documents, type(store.embeddings).__name__)

        return cls._filled(embedding, kwargs, fill)

    @classmethod
    async def afrom_faiss_folder(cls, folder: str | Path, embedding: Embeddings | None, **kwargs: Any) -> Self:
        """Do what `from_faiss_folder` does, in a thread."""
        return await asyncio.to_thread(cls.from_faiss_folder, folder, embedding, **kwargs)

    # writing ----------------------------------------------------------------------------------------------------

    def add_texts(
        self, texts: Iterable[str], metadatas: Metadatas = None, *, ids: list[str] | None = None, **kwargs: Any
    ) -> list[str]:
        """Add texts, replacing passages with the same id: all of them or, on any error, none. Returns the ids.

        Raises:
            SettingsError: a text that is no string, metadata that is not JSON, or embeddings that return something
                else than one vector of D finite numbers for each text.
            StoreReadOnlyError: the store is open read-only.
            StoreError: the disk is full, or the store is closed.
        """
        only(kwargs, "batch_size")  # of LangChain's indexing, which sends as many at once
        return self._add(documents_of(texts, metadatas, ids))

    async def aadd_texts(
        self, texts: Iterable[str], metadatas: Metadatas = None, *, ids: list[str] | None = None, **kwargs: Any
    ) -> list[str]:
        """Add texts; otherwise as `add_texts`."""
        only(kwargs, "batch_size")
        return await self._aadd(documents_of(texts, metadatas, ids))

    def add_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """Add documents, with `ids=` in place of their own; otherwise as `add_texts`."""
        only(kwargs, "batch_size", "ids")
        return self._add(passages_of_documents(documents, kwargs.get("ids")))

    async def aadd_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """Add documents, with `ids=` in place of their own; otherwise as `add_texts`."""
        only(kwargs, "batch_size", "ids")
        return await self._aadd(passages_of_documents(documents, kwargs.get("ids")))

    def _add(self, passages: list[core.Document]) -> list[str]:
        if not passages:
            return []
        texts = [passage.text for passage in passages]
        return self.store.add(passages, embedded(self.store.embedder, texts, self._batch_size, self._progress))

    async def _aadd(self, passages: list[core.Document]) -> list[str]:
        if not passages or self._embeddings is None:
            return await asyncio.to_thread(self._add, passages)
        texts = [passage.text for passage in passages]
        vectors = await aembedded(self._embeddings.aembed_documents, self.store.embedder, texts, self._batch_size)
        return await asyncio.to_thread(self.store.add, passages, vectors)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete by id, or with `filter=` by metadata; ids that are not there are no error.

        As in every VectorStore, neither `ids` nor `filter` deletes everything.

        Raises:
            SettingsError: both are given.
            FilterError: `filter` is not well formed.
            StoreReadOnlyError, StoreError: as `add_texts`.
        """
        only(kwargs, "filter")
        everything = ids is None and "filter" not in kwargs  # filter=None is more likely a mistake
        self.store.delete(ids, {} if everything else kwargs.get("filter"))
        return True

    # reading ----------------------------------------------------------------------------------------------------

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents with these ids, in their order, skipping ids that are not there."""
        return [document_of(passage) for passage in self.store.get(ids)]

    def similarity_search(self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any) -> list[Document]:
        """Return the k documents closest to a question, best first; fewer only if fewer match `filter`.

        `mode=` is how: "vector", "hybrid" or "text".

        Raises:
            SettingsError: `k` is not positive, `query` not a string, or the store has no vectors for this `mode`.
            FilterError: `filter` is not well formed.
            StoreError: the store is closed.
        """
        return [document for document, _ in self.similarity_search_with_score(query, k, filter, **kwargs)]

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the k documents closest to a question; otherwise as `similarity_search`."""
        return [document for document, _ in await self.asimilarity_search_with_score(query, k, filter, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> Scored:
        """Return documents with their scores, cosines in [-1, 1] by default; otherwise as `similarity_search`."""
        only(kwargs, "mode")
        return scored(self.store.search(query, k, filter, **kwargs))

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> Scored:
        """Return documents with their scores; otherwise as `similarity_search`."""
        only(kwargs, "mode")
        if self._embeddings is not None and kwargs.get("mode") != "text":
            kwargs["vector"] = await aembedded_query(self._embeddings.aembed_query, self.store.embedder, query)
        return scored(await asyncio.to_thread(self.store.search, query, k, filter, **kwargs))

    def similarity_search_by_vector(
        self, embedding: Vector, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the k documents closest to a vector of any length; otherwise as `similarity_search`."""
        return [document for document, _ in self.similarity_search_with_score_by_vector(embedding, k, filter, **kwargs)]

    def similarity_search_with_score_by_vector(
        self, embedding: Vector, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> Scored:
        """Return documents with their cosines to a vector of any length; otherwise as `similarity_search`."""
        only(kwargs)
        return scored(self.store.search_by_vector(embedding, k, filter))

    async def asimilarity_search_with_score_by_vector(
        self, embedding: Vector, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> Scored:
        """Return documents with their cosines to a vector of any length; otherwise as `similarity_search`."""
        return await asyncio.to_thread(self.similarity_search_with_score_by_vector, embedding, k, filter, **kwargs)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """Relevance is the cosine, and 0 for whatever points away from the question."""
        return lambda cosine: min(max(cosine, 0.0), 1.0)

    def _similarity_search_with_relevance_scores(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        require_cosines(self._embeddings, kwargs)
        return super()._similarity_search_with_relevance_scores(query, k, **kwargs)

    async def _asimilarity_search_with_relevance_scores(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        require_cosines(self._embeddings, kwargs)
        return await super()._asimilarity_search_with_relevance_scores(query, k, **kwargs)

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return k of the `fetch_k` closest documents that are close to the question and unlike each other.

        Raises:
            SettingsError: `lambda_mult` outside [0, 1], `fetch_k` not positive; otherwise as `similarity_search`.
        """
        only(kwargs)
        return [document_of(hit.document) for hit in self.store.mmr(query, k, fetch_k, lambda_mult, filter)]

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return close but different documents; otherwise as `max_marginal_relevance_search`."""
        options = k, fetch_k, lambda_mult, filter
        if self._embeddings is None:
            return await asyncio.to_thread(self.max_marginal_relevance_search, query, *options, **kwargs)
        vector = await aembedded_query(self._embeddings.aembed_query, self.store.embedder, query)
        return await asyncio.to_thread(self.max_marginal_relevance_search_by_vector, vector, *options, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: Vector,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return documents close to a vector but different; otherwise as `max_marginal_relevance_search`."""
        only(kwargs)
        return [
            document_of(hit.document) for hit in self.store.mmr_by_vector(embedding, k, fetch_k, lambda_mult, filter)
        ]

    # closing ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Write the index file and close; a second call does nothing."""
        self.store.close()

    async def aclose(self) -> None:
        """Close without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
