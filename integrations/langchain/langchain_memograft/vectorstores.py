"""`MemograftVectorStore`: Memograft's store of passages as a LangChain `VectorStore`.

The async methods await the async methods of the embeddings, and run the store's work in a thread. For methods without
embeddings, LangChain's base class does that.
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
Vector = Any  # (D,) numbers: list[float], as in LangChain, or an array
Scored = list[tuple[Document, float]]


class MemograftVectorStore(VectorStore):
    """Vector store with passages in SQLite and vectors in FAISS, on disk or in memory. It is thread-safe.

    Scores are cosines: higher is more similar. With an embedding, `mode="hybrid"` finds most: it combines the ranking
    by vectors with the ranking by words (BM25). `mode="text"`, and a store without an embedding, use only the words.
    The scores of these modes are those of `memograft.Hit`. For retrievers: `as_retriever(search_kwargs={"mode": ...})`.
    `filter` is a mapping such as `{"year": {"$gte": 1990}, "lang": "en"}`, with $eq $ne $gt $gte $lt $lte $in $nin
    $exists $and $or $not; a search returns the k best of all passages that match it. Metadata must be JSON. A document
    replaces the one with the same id; one without an id gets a new one.

    Opening a store reads files and, unless `dimension` is given, embeds one text. In async code, open a store with
    `await MemograftVectorStore.afrom_texts([], embedding, path=...)`.

    Args:
        embedding: any LangChain embeddings; by default those of the store at `path`. A new store has none by default:
            it is searched by words, and needs no model and no network.
        path: folder of the store, created if it does not exist; None keeps everything in memory. One writer and any
            number of readers can have it open.
        index: "flat", "hnsw", "ivf", "ivfpq", or `memograft.IndexSettings`; by default that of the store, for a new one
            "flat", which is exact.
        read_only: whether the store is opened only for reading.
        dimension: length of the vectors.
        batch_size: number of texts per call of `embedding`.
        progress: whether to show a progress bar on a terminal for long operations.

    Attributes:
        store: the underlying `memograft.VectorStore`, for `count`, `compact`, `persist` and iteration.

    Raises:
        SettingsError: a setting is invalid.
        EmbedderMismatchError: the store at `path` was built with other embeddings.
        StoreError: a store for `read_only` does not exist; or the folder cannot be used, is open for another writer
            (StoreLockedError), is damaged, or has files of another program (StoreCorruptError).

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
                f"the store {path} was built with embeddings that cannot be created from its files ({error}); pass "
                "them as `embedding=`"
            ) from error
        own = MemograftEmbeddings(self.store.embedder) if self.store.embedder.dimension else None
        self._embeddings = own if embedding is None else embedding

    @property
    def embeddings(self) -> Embeddings | None:
        """The embeddings of the store; None if it has none."""
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
        """Open a store with the arguments `kwargs` of the class, and add texts to it."""
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
        """Open a store with the arguments `kwargs` of the class, and add texts to it."""
        return await cls._afilled(documents_of(texts, metadatas, ids), embedding, kwargs)

    @classmethod
    def from_documents(cls, documents: list[Document], embedding: Embeddings | None = None, **kwargs: Any) -> Self:
        """Open a store with the arguments `kwargs` of the class, and add documents to it, with `ids=` if given."""
        passages = passages_of_documents(documents, kwargs.pop("ids", None))
        return cls._filled(embedding, kwargs, lambda store: store._add(passages))

    @classmethod
    async def afrom_documents(
        cls, documents: list[Document], embedding: Embeddings | None = None, **kwargs: Any
    ) -> Self:
        """Open a store with the arguments `kwargs` of the class, and add documents to it, with `ids=` if given."""
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
        """Convert a folder that the FAISS store of langchain_community wrote with `save_local`.

        Nothing is unpickled: `index.pkl` is parsed as plain data, and other objects in it are refused. The vectors of
        `index.faiss` are kept, and compared by cosine; the ranking is that of the old store if they have length 1.
        Documents keep their ids, so that converting again into the same `path` changes nothing.

        Args:
            folder: the argument of `save_local`. FAISS does not check all of `index.faiss`: trust its source.
            embedding: the embeddings that the folder was built with.
            index_name: the argument of `save_local`.
            kwargs: arguments of the class, such as `path`.

        Raises:
            StoreError: a file is missing, or the vectors cannot be read back from the index.
            StoreCorruptError: a file is damaged or has other objects than plain data, or the two files do not match.
            SettingsError: the vectors of `embedding` have another length; otherwise as the class.
        """
        old = read_faiss_folder(folder, index_name)

        def fill(store: Self) -> None:
            old.vectors.add_to(store.store, old.documents, type(store.embeddings).__name__)

        return cls._filled(embedding, kwargs, fill)

    @classmethod
    async def afrom_faiss_folder(cls, folder: str | Path, embedding: Embeddings | None, **kwargs: Any) -> Self:
        """`from_faiss_folder` in a thread."""
        return await asyncio.to_thread(cls.from_faiss_folder, folder, embedding, **kwargs)

    # writing ----------------------------------------------------------------------------------------------------

    def add_texts(
        self, texts: Iterable[str], metadatas: Metadatas = None, *, ids: list[str] | None = None, **kwargs: Any
    ) -> list[str]:
        """Add texts, replacing passages with the same id. After an error, none was added. Returns the ids.

        Raises:
            SettingsError: a text is not a string, metadata is not JSON, or the embeddings do not return one vector of
                finite numbers, of the store's dimension, for each text.
            StoreReadOnlyError: the store is read-only.
            StoreError: the disk is full, or the store is closed.
        """
        only(kwargs, "batch_size")  # an argument of LangChain's indexing
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
        """Delete documents by id, or by metadata with `filter=`. Unknown ids are ignored.

        Without `ids` and `filter`, all documents are deleted, as in LangChain's other stores.

        Raises:
            SettingsError: both are given.
            FilterError: `filter` is malformed.
            StoreReadOnlyError, StoreError: as in `add_texts`.
        """
        only(kwargs, "filter")
        everything = ids is None and "filter" not in kwargs  # filter=None is probably a mistake
        self.store.delete(ids, {} if everything else kwargs.get("filter"))
        return True

    # reading ----------------------------------------------------------------------------------------------------

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents with these ids, in the order of the ids; unknown ids are skipped."""
        return [document_of(passage) for passage in self.store.get(ids)]

    def similarity_search(self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any) -> list[Document]:
        """Return the k documents most similar to a question, best first; fewer only if fewer match `filter`.

        `mode=` is "vector", "hybrid" or "text".

        Raises:
            SettingsError: `k` is not positive, `query` is not a string, or the store has no vectors for this `mode`.
            FilterError: `filter` is malformed.
            StoreError: the store is closed.
        """
        return [document for document, _ in self.similarity_search_with_score(query, k, filter, **kwargs)]

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the k documents most similar to a question; otherwise as `similarity_search`."""
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
        """Return the k documents most similar to a vector of any norm; otherwise as `similarity_search`."""
        return [document for document, _ in self.similarity_search_with_score_by_vector(embedding, k, filter, **kwargs)]

    def similarity_search_with_score_by_vector(
        self, embedding: Vector, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> Scored:
        """Return documents with their cosines to a vector of any norm; otherwise as `similarity_search`."""
        only(kwargs)
        return scored(self.store.search_by_vector(embedding, k, filter))

    async def asimilarity_search_with_score_by_vector(
        self, embedding: Vector, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> Scored:
        """Return documents with their cosines to a vector of any norm; otherwise as `similarity_search`."""
        return await asyncio.to_thread(self.similarity_search_with_score_by_vector, embedding, k, filter, **kwargs)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """The relevance is the cosine, and 0 if that is negative."""
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
        """Return k of the `fetch_k` most similar documents that differ from each other.

        Raises:
            SettingsError: `lambda_mult` is not in [0, 1], `fetch_k` is not positive; otherwise as `similarity_search`.
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
        """`max_marginal_relevance_search` for asyncio."""
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
        """Return documents that are similar to a vector but differ; otherwise as `max_marginal_relevance_search`."""
        only(kwargs)
        return [
            document_of(hit.document) for hit in self.store.mmr_by_vector(embedding, k, fetch_k, lambda_mult, filter)
        ]

    # closing ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Write the index file and close the store; a second call does nothing."""
        self.store.close()

    async def aclose(self) -> None:
        """Close without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
