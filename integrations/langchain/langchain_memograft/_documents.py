"""Convert documents, in all forms that LangChain has for them, to `memograft.Document`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from langchain_core.documents import Document as LangChainDocument
from memograft import Document
from memograft.chat import to_documents as documents_of

__all__ = ["converted", "from_artifact", "to_documents"]


def converted(item: object, _position: int = 0) -> Document | None:
    """Return a LangChain Document as Memograft's; None for other objects. Implements `memograft.chat.Convert`."""
    if isinstance(item, LangChainDocument):
        return Document(item.page_content, item.id or "", item.metadata)
    return None


def to_documents(items: Iterable[Any] | None) -> tuple[Document, ...]:
    """Return documents in the same order (highest-ranked first); see `memograft.chat.to_documents`.

    Raises:
        SettingsError: an item is not a document, or `items` is one document instead of a list.
    """
    return documents_of(
        items,
        converted,
        forms="a LangChain Document, a string, or a mapping with `page_content` or `text`",
        remedy="wrap it as Document(page_content=text)",
    )


def from_artifact(artifact: Any) -> tuple[Document, ...]:
    """Return the Documents in a tool's artifact, which is a Document or a list; other items are ignored."""
    items = artifact if isinstance(artifact, list | tuple) else [artifact]
    return to_documents([item for item in items if _is_document(item)])


def _is_document(item: Any) -> bool:
    """Return whether the item is a document; in a checkpoint of LangGraph, Documents are mappings of their fields."""
    if isinstance(item, Mapping):
        return item.get("type") == "Document" and isinstance(item.get("page_content"), str)
    return isinstance(item, Document | LangChainDocument)
