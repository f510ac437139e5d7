"""`MemograftRetriever`: retrieves the k best documents from Memograft's or another vector store."""

from __future__ import annotations

import math
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.vectorstores import VectorStore
from memograft.errors import SettingsError
from memograft.passages.checks import check_count
from pydantic import Field

__all__ = ["MemograftRetriever"]


class MemograftRetriever(BaseRetriever):
    """Retrieves the documents that are most similar to a question, best first.

    Arguments of a call override the fields, except `vectorstore`: `retriever.invoke(question, k=1)`.

    Attributes:
        vectorstore: a MemograftVectorStore, or another LangChain VectorStore.
        k: maximum number of documents.
        score_threshold: minimum relevance, from 0 to 1, as defined by the store; for MemograftVectorStore the cosine.
            None is no minimum.
        filter: for the store; for MemograftVectorStore a mapping such as `{"lang": "en"}`.
        with_score: put each document's score into its metadata as "score": the relevance with a threshold, otherwise
            what the store's `similarity_search_with_score` returns, which is a distance in some stores.

    Raises:
        SettingsError: the store has no relevance scores, which the threshold needs; or `k` is below 1.

    Example:
        >>> from langchain_memograft import MemograftVectorStore
        >>> store = MemograftVectorStore.from_texts(["Paris is the capital of France.", "Bergamot is a citrus fruit."])
        >>> MemograftRetriever(vectorstore=store, k=1).invoke("What is the capital of France?")[0].page_content
        'Paris is the capital of France.'
    """

    vectorstore: VectorStore
    k: int = Field(default=4, ge=1)
    score_threshold: float | None = Field(default=None, ge=0, le=1)
    filter: Any = None
    with_score: bool = False

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        params = super()._get_ls_params(**kwargs)
        params["ls_vector_store_provider"] = type(self.vectorstore).__name__
        if self.vectorstore.embeddings is not None:
            params["ls_embedding_provider"] = type(self.vectorstore.embeddings).__name__
        return params

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - LangChain's signature
        k: int | None = None,
        score_threshold: float | None = None,
        filter: Any = None,
    ) -> list[Document]:
        options = self._options(k, filter)
        least = self.score_threshold if score_threshold is None else score_threshold
        if least is None and not self.with_score:
            return self.vectorstore.similarity_search(query, **options)
        if least is None:
            return self._kept(self.vectorstore.similarity_search_with_score(query, **options))
        try:
            found = self.vectorstore.similarity_search_with_relevance_scores(query, **options)
        except NotImplementedError as error:
            raise self._no_relevance() from error
        return self._kept(found, least)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,  # noqa: ARG002 - LangChain's signature
        k: int | None = None,
        score_threshold: float | None = None,
        filter: Any = None,
    ) -> list[Document]:
        options = self._options(k, filter)
        least = self.score_threshold if score_threshold is None else score_threshold
        if least is None and not self.with_score:
            return await self.vectorstore.asimilarity_search(query, **options)
        if least is None:
            return self._kept(await self.vectorstore.asimilarity_search_with_score(query, **options))
        try:
            found = await self.vectorstore.asimilarity_search_with_relevance_scores(query, **options)
        except NotImplementedError as error:
            raise self._no_relevance() from error
        return self._kept(found, least)

    def _options(self, k: int | None, filter: Any) -> dict[str, Any]:
        """Return the arguments for the store; `filter` only if it is set, because some stores do not take it."""
        k = self.k if k is None else k
        check_count("k", k)
        filter = self.filter if filter is None else filter
        return {"k": k} if filter is None else {"k": k, "filter": filter}

    def _no_relevance(self) -> SettingsError:
        return SettingsError(
            f"`score_threshold` needs a store with relevance scores, and {type(self.vectorstore).__name__} has none; "
            "leave it out, or use MemograftVectorStore"
        )

    def _kept(self, found: list[tuple[Document, float]], least: float = -math.inf) -> list[Document]:
        """Return the documents with at least this score, with it in their metadata if that was asked for."""
        return [
            document.model_copy(update={"metadata": {**document.metadata, "score": score}})
            if self.with_score
            else document
            for document, score in found
            if score >= least
        ]
