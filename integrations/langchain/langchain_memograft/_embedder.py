"""LangChain `Embeddings` as an embedder of Memograft's stores: its vectors, checked, and a name for it.

`embedder_of` is the way in; the name it gives keeps a folder from being searched with the vectors of another model.
Knows no store.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from langchain_core.embeddings import Embeddings
from memograft.errors import SettingsError
from memograft.passages.checks import as_floats, check_question, returned
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
        parts.append(returned(embedder, await embedding.aembed_documents(batch), len(batch)))
    return np.concatenate(parts)


async def aembedded_query(embedding: Embeddings, embedder: Embedder, query: str) -> FloatArray:
    """Return the (D,) unit vector of a question by the embeddings' own async method; the errors are a store's."""
    check_question(query)
    return returned(embedder, await embedding.aembed_query(query))


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
        return self._floats(self._embedding.embed_documents(texts))

    def embed_query(self, text: str) -> FloatArray:
        return self._floats(self._embedding.embed_query(text))

    def _floats(self, vectors: object) -> FloatArray:
        return as_floats(vectors, f"the embedder {self.fingerprint!r} must return")


def _name(embedding: Embeddings) -> str:
    """Return class and model. The module is left out: many classes have moved from package to package."""
    fields = (getattr(embedding, field, None) for field in _MODEL_FIELDS)
    model = next((value for value in fields if isinstance(value, str) and value), None)
    return ":".join(filter(None, (type(embedding).__qualname__, model)))
