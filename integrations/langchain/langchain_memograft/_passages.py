"""LangChain's documents and texts to passages of a store, and back. Ids are made here; knows no store."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from memograft import documents as core
from memograft.errors import SettingsError
from memograft.passages.vector_store import Hit

__all__ = ["document_of", "only", "passages_of_documents", "passages_of_texts", "require_cosines", "scored"]


def passages_of_documents(documents: Iterable[Document], ids: Sequence[str | None] | None) -> list[core.Document]:
    """Return passages; one without an id, in `ids` or its own, gets a new one.

    Raises:
        SettingsError: something else than documents, or another number of ids.
    """
    if isinstance(documents, str | Document | Mapping) or not isinstance(documents, Iterable):
        raise SettingsError(
            f"`documents` must be a list of documents, got one {type(documents).__name__}; write [document]"
        )
    documents = list(documents)
    for position, document in enumerate(documents):
        if not isinstance(document, Document):
            raise SettingsError(
                f"documents[{position}] must be a LangChain Document, got {type(document).__name__}; add_texts takes "
                "strings"
            )
    own = [document.id for document in documents] if ids is None else _as_many("ids", ids, len(documents))
    return [
        core.Document(document.page_content, id or str(uuid.uuid4()), document.metadata)
        for document, id in zip(documents, own, strict=True)
    ]


def passages_of_texts(
    texts: Iterable[str], metadatas: Sequence[dict[str, Any]] | None, ids: Sequence[str | None] | None
) -> list[core.Document]:
    """Return passages; one without an id gets a new one.

    Raises:
        SettingsError: something else than strings, or another number of metadatas or ids.
    """
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise SettingsError(f"`texts` must be a list of strings, got one {type(texts).__name__}; write [text]")
    texts = list(texts)
    metadatas = [{}] * len(texts) if metadatas is None else _as_many("metadatas", metadatas, len(texts))
    ids = [None] * len(texts) if ids is None else _as_many("ids", ids, len(texts))
    return [
        core.Document(text, id or str(uuid.uuid4()), metadata or {})
        for text, metadata, id in zip(texts, metadatas, ids, strict=True)
    ]


def _as_many(name: str, values: Sequence[Any], number: int) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise SettingsError(f"`{name}` must be a list, got one {type(values).__name__}; write {name}=[...]")
    values = list(values)
    if len(values) != number:
        raise SettingsError(f"`{name}` must be as many as the texts, got {len(values)} for {number}; leave it out")
    return values


def document_of(passage: core.Document) -> Document:
    """Return a passage as LangChain has it."""
    return Document(passage.text, id=passage.id, metadata=dict(passage.metadata))


def scored(hits: Iterable[Hit]) -> list[tuple[Document, float]]:
    """Return documents with their scores."""
    return [(document_of(hit.document), hit.score) for hit in hits]


def require_cosines(embeddings: Embeddings | None, options: Mapping[str, Any]) -> None:
    """Refuse a search whose scores are no cosines, of which alone LangChain's relevance from 0 to 1 can be made."""
    if embeddings is None or options.get("mode") not in (None, "vector"):
        got = "a store without an embedding" if embeddings is None else f"mode={options['mode']!r}"
        raise SettingsError(
            f"relevance scores and thresholds need cosines, got {got}; pass an embedding and search by vectors, or "
            "leave the threshold out"
        )


def only(given: Mapping[str, Any], *known: str) -> None:
    """Refuse arguments that would be ignored."""
    for name in given:
        if name not in known:
            raise TypeError(f"MemograftVectorStore takes no argument `{name}` here; check its name, or leave it out")
