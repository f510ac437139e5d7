"""`MemograftEmbeddings`: Memograft's embedders as LangChain `Embeddings`. Texts in, lists of numbers out."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings
from memograft.errors import SettingsError
from memograft.passages.checks import checked_items
from memograft.passages.embedders import Embedder, LexicalEmbedder

__all__ = ["MemograftEmbeddings"]


class MemograftEmbeddings(Embeddings):
    """Embeddings that need no model, no download and no network; or any other embedder of Memograft's.

    Vectors have length 1. The async methods run in a thread, so they never block the event loop.

    Args:
        embedder: left out, `LexicalEmbedder()`, which finds shared words, not meaning. For what must have vectors: a
            MemograftVectorStore without embeddings searches by BM25, and finds more.

    Raises:
        SettingsError: `embedder` is not one of Memograft's.

    Example:
        >>> embeddings = MemograftEmbeddings()
        >>> len(embeddings.embed_query("What is the capital of France?"))
        1024
    """

    def __init__(self, embedder: Embedder | None = None) -> None:
        if embedder is not None and not isinstance(embedder, Embedder):
            raise SettingsError(
                f"`embedder` must be an embedder of Memograft's, got {type(embedder).__name__}; LangChain's Embeddings "
                "go to MemograftVectorStore as they are"
            )
        self.embedder = embedder or LexicalEmbedder()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector of `embedder.dimension` numbers for each passage.

        Raises:
            SettingsError: `texts` is not a list of strings.
        """
        return [row.tolist() for row in self.embedder.embed_documents(checked_items("texts", texts, str))]

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of one question.

        Raises:
            SettingsError: `text` is not a string.
        """
        if not isinstance(text, str):
            raise SettingsError(f"`text` must be a string, got {type(text).__name__}; embed_documents takes a list")
        vector: list[float] = self.embedder.embed_query(text).tolist()
        return vector
