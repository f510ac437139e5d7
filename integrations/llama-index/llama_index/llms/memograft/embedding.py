"""`MemograftEmbedding`: an embedder of Memograft as LlamaIndex's embedding model; by default it needs no download.

Knows nothing of stores and language models.
"""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from memograft.passages.embedders import Embedder, LexicalEmbedder, embedder_from_config


class MemograftEmbedding(BaseEmbedding):
    """Vectors of Memograft's embedders: deterministic, offline and instant with the default, `LexicalEmbedder`.

    The default finds shared words, not meaning, and worse than BM25 (`vector_store_query_mode="text_search"`) does;
    `SentenceTransformerEmbedder("...")` finds meaning.

    Args:
        embedder: what makes the vectors; left out, `LexicalEmbedder()`.
        kwargs: fields of BaseEmbedding, such as `embed_batch_size`.

    Example:
        >>> from llama_index.core import Settings
        >>> from llama_index.llms.memograft import MemograftEmbedding
        >>> Settings.embed_model = MemograftEmbedding()
        >>> len(Settings.embed_model.get_text_embedding("Bergamot is a citrus fruit."))
        1024
    """

    config: dict[str, Any] = Field(default_factory=dict, description="What the embedder is built from again.")
    _embedder: Embedder = PrivateAttr()

    def __init__(self, embedder: Embedder | None = None, **kwargs: Any) -> None:
        if embedder is None:
            config = kwargs.get("config")
            embedder = embedder_from_config(config) if config else LexicalEmbedder()
        super().__init__(**{**kwargs, "model_name": embedder.fingerprint, "config": embedder.config()})
        self._embedder = embedder

    @classmethod
    def class_name(cls) -> str:
        """Name under which LlamaIndex stores and logs it."""
        return "MemograftEmbedding"

    @property
    def dimension(self) -> int:
        """D, the length of every vector."""
        return self._embedder.dimension

    @property
    def embedder(self) -> Embedder:
        """The embedder itself; `MemograftVectorStore(embedder=...)` records it, and refuses another one's vectors."""
        return self._embedder

    def _get_query_embedding(self, query: str) -> Embedding:
        return list(map(float, self._embedder.embed_query(query)))

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        vectors: list[Embedding] = self._embedder.embed_documents(texts).tolist()
        return vectors

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
