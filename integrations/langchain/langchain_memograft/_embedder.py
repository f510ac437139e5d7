"""LangChain `Embeddings` as an embedder of Memograft's stores, which keep its name."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings
from memograft.errors import SettingsError
from memograft.passages.checks import check_count
from memograft.passages.embedders import Embedder
from memograft.passages.outside import OutsideEmbedder, model_name

from langchain_memograft.embeddings import MemograftEmbeddings

__all__ = ["embedder_of"]


def embedder_of(embedding: Embeddings | None, dimension: int | None) -> Embedder | None:
    """Return what a store asks for its vectors; None for the one it was built with.

    Args:
        embedding: any LangChain embeddings; Memograft's own are unwrapped, so that a store knows them again.
        dimension: D, if it is known; else `embedding` is asked for one vector.

    Raises:
        SettingsError: not LangChain embeddings, or `dimension` is not a positive whole number.
    """
    if dimension is not None:
        check_count("dimension", dimension, "leave it out")
    if embedding is None:
        return None
    if not isinstance(embedding, Embeddings):
        raise SettingsError(
            f"`embedding` must be LangChain embeddings, got {type(embedding).__name__}; wrap an embedder of "
            "Memograft's as MemograftEmbeddings(embedder), or leave it out"
        )
    if isinstance(embedding, MemograftEmbeddings):
        return embedding.embedder
    name = model_name(embedding)
    return OutsideEmbedder("langchain", name, embedding.embed_documents, embedding.embed_query, dimension)
