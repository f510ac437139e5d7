"""Convert LangChain's documents to passages of a store, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from memograft import documents as core
from memograft.errors import SettingsError
from memograft.passages.checks import checked_items
from memograft.passages.incoming import documents_of
from memograft.passages.vector_store import Hit

__all__ = ["document_of", "only", "passages_of_documents", "require_cosines", "scored"]


def passages_of_documents(documents: Iterable[Document], ids: Sequence[str | None] | None) -> list[core.Document]:
    """Return passages. A document without an id, in `ids` or in itself, gets a new one.

    Raises:
        SettingsError: an item is not a document, or the number of ids differs.
    """
    documents = checked_items("documents", documents, Document, "a LangChain Document", "add_texts takes strings")
    texts, metadatas = [each.page_content for each in documents], [each.metadata for each in documents]
    return documents_of(texts, metadatas, [each.id for each in documents] if ids is None else ids)


def document_of(passage: core.Document) -> Document:
    """Return a passage as a LangChain Document."""
    return Document(passage.text, id=passage.id, metadata=dict(passage.metadata))


def scored(hits: Iterable[Hit]) -> list[tuple[Document, float]]:
    """Return documents with their scores."""
    return [(document_of(hit.document), hit.score) for hit in hits]


def require_cosines(embeddings: Embeddings | None, options: Mapping[str, Any]) -> None:
    """Refuse a search whose scores are not cosines, because only those give LangChain's relevance from 0 to 1."""
    if embeddings is None or options.get("mode") not in (None, "vector"):
        got = "a store without an embedding" if embeddings is None else f"mode={options['mode']!r}"
        raise SettingsError(
            f"relevance scores and thresholds need cosines, got {got}; pass an embedding and search by vectors, or "
            "leave the threshold out"
        )


def only(given: Mapping[str, Any], *known: str) -> None:
    """Refuse arguments other than `known`, which would be ignored."""
    for name in given:
        if name not in known:
            raise TypeError(f"MemograftVectorStore takes no argument `{name}` here; check its name, or leave it out")
