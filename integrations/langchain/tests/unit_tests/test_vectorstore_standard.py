"""LangChain's standard suites for vector stores, retrievers and embeddings, in memory and on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import EmbeddingsUnitTests

from langchain_memograft import MemograftEmbeddings, MemograftRetriever, MemograftVectorStore


class TestInMemory(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> Iterator[VectorStore]:
        with MemograftVectorStore(self.get_embeddings()) as store:
            yield store


class TestOnTheDisk(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[VectorStore]:
        with MemograftVectorStore(self.get_embeddings(), path=tmp_path / "store", index="hnsw") as store:
            yield store


class TestOffline(VectorStoreIntegrationTests):
    """A store that searches by words, without embeddings."""

    @pytest.fixture
    def vectorstore(self) -> Iterator[VectorStore]:
        with MemograftVectorStore() as store:
            yield store


class TestLexical(VectorStoreIntegrationTests):
    """A store with MemograftEmbeddings."""

    @pytest.fixture
    def vectorstore(self) -> Iterator[VectorStore]:
        with MemograftVectorStore(MemograftEmbeddings()) as store:
            yield store


class TestRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return MemograftRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"vectorstore": MemograftVectorStore.from_texts([f"Page {n} is about tea." for n in range(9)])}

    @property
    def retriever_query_example(self) -> str:
        return "What is page 3 about?"


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[MemograftEmbeddings]:
        return MemograftEmbeddings


class TestEmbeddingsIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[MemograftEmbeddings]:
        return MemograftEmbeddings
