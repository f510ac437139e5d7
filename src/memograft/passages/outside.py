"""Embedding models of other libraries as embedders of a store: from two functions, called directly or awaited.

The vectors are checked and scaled to length 1 as those of any embedder; the errors are the store's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np

from memograft.passages.checks import FloatArray, as_floats, check_count, check_question, returned
from memograft.passages.embedders import Embedder
from memograft.storage.disk import JsonObject

__all__ = ["OutsideEmbedder", "aembedded", "aembedded_query", "model_name"]

_MODEL_FIELDS = ("model", "model_name", "model_id", "deployment", "repo_id")  # what libraries call it


class OutsideEmbedder:
    """An embedding model of another library. A store records its name, and does not accept the vectors of another one.

    A store cannot build it again from its name, so whoever opens the store passes it.

    Args:
        library: name of the library; part of the fingerprint, as is `name`.
        name: name of the model.
        embed_documents: N texts -> N vectors, as lists of numbers or an array.
        embed_query: a question -> a vector.
        dimension: D, the length of a vector. None: one text is embedded to measure it.

    Raises:
        SettingsError: `dimension` is not a positive whole number.
    """

    def __init__(
        self,
        library: str,
        name: str,
        embed_documents: Callable[[list[str]], object],
        embed_query: Callable[[str], object],
        dimension: int | None = None,
    ) -> None:
        if dimension is not None:
            check_count("dimension", dimension, "leave it out")
        self._library, self._name = library, name
        self._embed_documents, self._embed_query = embed_documents, embed_query
        self._dimension = dimension or len(np.atleast_1d(self.embed_query("dimension")))

    @property
    def dimension(self) -> int:
        """D, the length of every vector."""
        return self._dimension

    @property
    def fingerprint(self) -> str:
        """Library and name. It does not change with the weights of a model of the same name."""
        return f"{self._library}:{self._name}"

    def config(self) -> JsonObject:
        """JSON values that identify the model; `embedder_from_config` cannot build it from them."""
        return {"type": self._library, "name": self._name}

    def embed_documents(self, texts: list[str]) -> FloatArray:
        """Return the (N, D) vectors of N passages, of any length."""
        return self._floats(self._embed_documents(texts))

    def embed_query(self, text: str) -> FloatArray:
        """Return the (D,) vector of one question, of any length."""
        return self._floats(self._embed_query(text))

    def _floats(self, vectors: object) -> FloatArray:
        return as_floats(vectors, f"the embedder {self.fingerprint!r} must return")


def model_name(model: object) -> str:
    """Return the class of an object and the model that it names, without the module, which libraries often move."""
    fields = (getattr(model, field, None) for field in _MODEL_FIELDS)
    name = next((value for value in fields if isinstance(value, str) and value), None)
    return ":".join(filter(None, (type(model).__qualname__, name)))


async def aembedded(
    embed_documents: Callable[[list[str]], Awaitable[object]], embedder: Embedder, texts: list[str], batch_size: int
) -> FloatArray:
    """Return the (N, D) unit vectors of N texts by an async function, `batch_size` at a time."""
    parts = [np.zeros((0, embedder.dimension), np.float32)]
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        parts.append(returned(embedder, await embed_documents(batch), len(batch)))
    return np.concatenate(parts)


async def aembedded_query(
    embed_query: Callable[[str], Awaitable[object]], embedder: Embedder, query: str
) -> FloatArray:
    """Return the (D,) unit vector of a question by an async function."""
    check_question(query)
    return returned(embedder, await embed_query(query))
