"""What LangChain calls a document, in any of its forms -> `memograft.Document`. Free text is never searched for one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from langchain_core.documents import Document as LangChainDocument
from memograft import Document
from memograft.chat import to_documents as documents_of

__all__ = ["converted", "from_artifact", "to_documents"]


def converted(item: object, _position: int = 0) -> Document | None:
    """Return a LangChain Document as Memograft's; None for anything else. It is `memograft.chat.Convert`."""
    if isinstance(item, LangChainDocument):
        return Document(item.page_content, item.id or "", item.metadata)
    return None


def to_documents(items: Iterable[Any] | None) -> tuple[Document, ...]:
    """Return documents in the same order (highest-ranked first); see `memograft.chat.to_documents`.

    Raises:
        SettingsError: an item is no document, or one document was passed where a list belongs.
    """
    return documents_of(
        items,
        converted,
        forms="a LangChain Document, a string, or a mapping with `page_content` or `text`",
        remedy="wrap it as Document(page_content=text)",
    )


def from_artifact(artifact: Any) -> tuple[Document, ...]:
    """Return the Documents in a tool's artifact, which is one or a list of some; all else in it is passed over."""
    items = artifact if isinstance(artifact, list | tuple) else [artifact]
    return to_documents([item for item in items if _is_document(item)])


def _is_document(item: Any) -> bool:
    """Return whether it is one; in a checkpoint of LangGraph, a tool's Documents are mappings of their fields."""
    if isinstance(item, Mapping):
        return item.get("type") == "Document" and isinstance(item.get("page_content"), str)
    return isinstance(item, Document | LangChainDocument)
