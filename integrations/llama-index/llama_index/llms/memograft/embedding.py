"""`MemograftEmbedding`: an embedder of Memograft as LlamaIndex's embedding model; the default needs no download."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from memograft.errors import SettingsError
from memograft.passages.embedders import Embedder, LexicalEmbedder, embedder_from_config


class MemograftEmbedding(BaseEmbedding):
    """Embedding model with an embedder of Memograft. The default, `LexicalEmbedder`, is fast and works offline.

    The default compares words, not meaning, and finds less than BM25 (`vector_store_query_mode="text_search"`).
    `SentenceTransformerEmbedder("...")` compares meaning.

    Args:
        embedder: an embedder of Memograft; by default `LexicalEmbedder()`.
        kwargs: fields of BaseEmbedding, such as `embed_batch_size`.

    Example:
        >>> from llama_index.core import Settings
        >>> from llama_index.llms.memograft import MemograftEmbedding
        >>> Settings.embed_model = MemograftEmbedding()
        >>> len(Settings.embed_model.get_text_embedding("Bergamot is a citrus fruit."))
        1024
    """

    config: dict[str, Any] = Field(default_factory=dict, description="The configuration of the embedder.")
    _embedder: Embedder = PrivateAttr()

    def __init__(self, embedder: Embedder | None = None, **kwargs: Any) -> None:
        if "base_url" in kwargs:
            raise SettingsError(
                f"`base_url` is an argument of the LLM, got {kwargs['base_url']!r}: MemograftEmbedding embeds in this "
                "process; leave it out, or use LlamaIndex's OpenAIEmbedding with `memograft serve --embedder`"
            )
        if embedder is None:
            config = kwargs.get("config")
            embedder = embedder_from_config(config) if config else LexicalEmbedder()
        super().__init__(**{**kwargs, "model_name": embedder.fingerprint, "config": embedder.config()})
        self._embedder = embedder

    @classmethod
    def class_name(cls) -> str:
        """The name in LlamaIndex's serialization and logs."""
        return "MemograftEmbedding"

    @property
    def dimension(self) -> int:
        """The length of the vectors."""
        return self._embedder.dimension

    @property
    def embedder(self) -> Embedder:
        """The embedder, for `MemograftVectorStore(embedder=...)`, which then refuses vectors of other embedders."""
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
