"""Convert LangChain `Embeddings` to an embedder for Memograft's stores, which save its name."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings
from memograft.errors import SettingsError
from memograft.passages.checks import check_count
from memograft.passages.embedders import Embedder
from memograft.passages.outside import OutsideEmbedder, model_name

from langchain_memograft.embeddings import MemograftEmbeddings

__all__ = ["embedder_of"]


def embedder_of(embedding: Embeddings | None, dimension: int | None) -> Embedder | None:
    """Return the embedder of a store; None for the one that the store was built with.

    Args:
        embedding: any LangChain embeddings; from MemograftEmbeddings the embedder is taken, so that the store can
            recognize it.
        dimension: length of the vectors, if known; else one text is embedded to find it.

    Raises:
        SettingsError: `embedding` is not LangChain embeddings, or `dimension` is not a positive whole number.
    """
    if dimension is not None:
        check_count("dimension", dimension, "leave it out")
    if embedding is None:
        return None
    if not isinstance(embedding, Embeddings):
        raise SettingsError(
            f"`embedding` must be LangChain embeddings, got {type(embedding).__name__}; wrap an embedder of "
            "Memograft as MemograftEmbeddings(embedder), or leave it out"
        )
    if isinstance(embedding, MemograftEmbeddings):
        return embedding.embedder
    name = model_name(embedding)
    return OutsideEmbedder("langchain", name, embedding.embed_documents, embedding.embed_query, dimension)
