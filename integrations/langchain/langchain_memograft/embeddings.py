"""`MemograftEmbeddings`: Memograft's embedders as LangChain `Embeddings`."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings
from memograft.errors import SettingsError
from memograft.passages.checks import checked_items
from memograft.passages.embedders import Embedder, LexicalEmbedder

__all__ = ["MemograftEmbeddings"]


class MemograftEmbeddings(Embeddings):
    """Embeddings of an embedder of Memograft. The default needs no model and no network.

    Vectors have length 1. The async methods run in a thread, so they do not block the event loop.

    Args:
        embedder: by default `LexicalEmbedder()`, which compares words, not meaning. Use it only where vectors are
            required: a MemograftVectorStore without embeddings searches with BM25 and finds more.

    Raises:
        SettingsError: `embedder` is not an embedder of Memograft.

    Example:
        >>> embeddings = MemograftEmbeddings()
        >>> len(embeddings.embed_query("What is the capital of France?"))
        1024
    """

    def __init__(self, embedder: Embedder | None = None) -> None:
        if embedder is not None and not isinstance(embedder, Embedder):
            raise SettingsError(
                f"`embedder` must be an embedder of Memograft, got {type(embedder).__name__}; pass LangChain's "
                "Embeddings to MemograftVectorStore directly"
            )
        self.embedder = embedder or LexicalEmbedder()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector of `embedder.dimension` numbers for each text.

        Raises:
            SettingsError: `texts` is not a list of strings.
        """
        return [row.tolist() for row in self.embedder.embed_documents(checked_items("texts", texts, str))]

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query.

        Raises:
            SettingsError: `text` is not a string.
        """
        if not isinstance(text, str):
            raise SettingsError(f"`text` must be a string, got {type(text).__name__}; embed_documents takes a list")
        vector: list[float] = self.embedder.embed_query(text).tolist()
        return vector
