"""Prepare documents for writing: build them from texts, check them, embed them, and convert them to rows."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from memograft.documents import Document, as_documents
from memograft.passages.checks import (
    FloatArray,
    checked_items,
    checked_list,
    checked_metadata,
    checked_vectors,
    embedded,
)
from memograft.passages.embedders import Embedder
from memograft.passages.rows import Passage

__all__ = ["documents_of", "prepared"]


def documents_of(
    texts: Iterable[str],
    metadatas: Iterable[Mapping[str, object] | None] | None = None,
    ids: Iterable[str | None] | None = None,
) -> list[Document]:
    """Return documents of N texts, N metadatas and N ids; a document without an id gets a random one.

    Raises:
        SettingsError: something else than strings, or another number of metadatas or ids.
    """
    texts = checked_items("texts", texts, str)
    metadatas = [None] * len(texts) if metadatas is None else checked_list("metadatas", metadatas, len(texts))
    ids = [None] * len(texts) if ids is None else checked_list("ids", ids, len(texts))
    return [
        Document(text, id or str(uuid.uuid4()), metadata or {})
        for text, metadata, id in zip(texts, metadatas, ids, strict=True)
    ]


def prepared(
    documents: Iterable[Document | str | Mapping[str, Any]],
    vectors: ArrayLike | None,
    embedder: Embedder,
    batch_size: int,
    progress: bool,
) -> tuple[list[str], list[Passage], FloatArray]:
    """Return (the id of each document, the M rows to write, their (M, D) unit vectors).

    If several documents have the same id, the last one is written. See `VectorStore.add`.
    """
    items = as_documents(documents)
    if not items:
        return [], [], np.zeros((0, embedder.dimension), np.float32)
    metadata = [checked_metadata(document, i, needs_text=vectors is None) for i, document in enumerate(items)]
    kept = sorted({document.id: position for position, document in enumerate(items)}.values())
    if vectors is None:
        units = embedded(embedder, [items[i].text for i in kept], batch_size, progress)
    else:
        units = checked_vectors(vectors, (len(items), embedder.dimension), "`vectors` must have")[kept]
    rows = [
        Passage(items[i].id, items[i].text, metadata[i], unit.tobytes()) for i, unit in zip(kept, units, strict=True)
    ]
    return [document.id for document in items], rows, units
