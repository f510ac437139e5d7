"""LangChain `Embeddings` as an embedder of Memograft's stores: its vectors, checked, and a name for it.

`embedder_of` is the way in; the name it gives keeps a folder from being searched with the vectors of another model.
Knows no store.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from langchain_core.embeddings import Embeddings
from memograft.errors import SettingsError
from memograft.passages.checks import checked_vectors
from memograft.passages.embedders import Embedder
from numpy.typing import NDArray

from langchain_memograft.embeddings import MemograftEmbeddings

__all__ = ["aembedded", "aembedded_query", "embedder_of"]

FloatArray = NDArray[np.float32]

_MODEL_FIELDS = ("model", "model_name", "model_id", "deployment", "repo_id")  # what integrations call it
_CONFIG_TYPE = "langchain"


def embedder_of(embedding: Embeddings | None, dimension: int | None) -> Embedder | None:
    """Return what a store asks for its vectors; None for the one it was built with.

    Args:
        embedding: any LangChain embeddings; Memograft's own are unwrapped, so that a store knows them again.
        dimension: D, if it is known; else `embedding` is asked for one vector.

    Raises:
        SettingsError: not LangChain embeddings, or `dimension` is not a positive whole number.
    """
    if dimension is not None and (isinstance(dimension, bool) or not isinstance(dimension, int) or dimension < 1):
        raise SettingsError(f"`dimension` must be a whole number of at least 1, got {dimension!r}; leave it out")
    if embedding is None:
        return None
    if not isinstance(embedding, Embeddings):
        raise SettingsError(
            f"`embedding` must be LangChain embeddings, got {type(embedding).__name__}; wrap an embedder of "
            "Memograft's as MemograftEmbeddings(embedder), or leave it out"
        )
    if isinstance(embedding, MemograftEmbeddings):
        return embedding.embedder
    return _LangChainEmbedder(embedding, dimension)


async def aembedded(embedding: Embeddings, embedder: Embedder, texts: list[str], batch_size: int) -> FloatArray:
    """Return the (N, D) unit vectors of N texts by the embeddings' own async method; the errors are a store's."""
    parts = [np.zeros((0, embedder.dimension), np.float32)]
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        vectors = _as_array(await embedding.aembed_documents(batch), embedding)
        parts.append(checked_vectors(vectors, (len(batch), embedder.dimension), _must_return(embedder)))
    return np.concatenate(parts)


async def aembedded_query(embedding: Embeddings, embedder: Embedder, query: str) -> FloatArray:
    """Return the (D,) unit vector of a question by the embeddings' own async method; the errors are a store's."""
    if not isinstance(query, str):
        raise SettingsError(f"`query` must be a string, got {type(query).__name__}; search_by_vector takes vectors")
    vector = _as_array(await embedding.aembed_query(query), embedding)
    return checked_vectors(vector, (embedder.dimension,), _must_return(embedder))


def _must_return(embedder: Embedder) -> str:
    return f"the embedder {embedder.fingerprint!r} must return"


def _as_array(vectors: object, embedding: Embeddings) -> FloatArray:
    """Return what embeddings gave as an array; rows of different lengths and things that are no numbers are refused."""
    try:
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which the store refuses
            return np.asarray(vectors, np.float32)
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"{type(embedding).__name__} must return lists of numbers of one length, and did not ({error}); look at "
            "what they were made from"
        ) from error


class _LangChainEmbedder:
    """The `Embedder` that a store sees."""

    def __init__(self, embedding: Embeddings, dimension: int | None) -> None:
        self._embedding = embedding
        self._name = _name(embedding)
        # Asked by doing, as LangChain's interface does not tell.
        self._dimension = dimension or len(np.atleast_1d(self.embed_query("dimension")))

    @property
    def dimension(self) -> int:
        return self._dimension

    @property
    def fingerprint(self) -> str:
        return f"{_CONFIG_TYPE}:{self._name}"

    def config(self) -> dict[str, Any]:
        return {"type": _CONFIG_TYPE, "name": self._name}

    def embed_documents(self, texts: list[str]) -> FloatArray:
        return _as_array(self._embedding.embed_documents(texts), self._embedding)

    def embed_query(self, text: str) -> FloatArray:
        return _as_array(self._embedding.embed_query(text), self._embedding)


def _name(embedding: Embeddings) -> str:
    """Return class and model. The module is left out: many classes have moved from package to package."""
    fields = (getattr(embedding, field, None) for field in _MODEL_FIELDS)
    model = next((value for value in fields if isinstance(value, str) and value), None)
    return ":".join(filter(None, (type(embedding).__qualname__, model)))
