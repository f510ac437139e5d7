"""What LangChain calls a document, in any of its forms -> `memograft.Document`. Never guesses from free text."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.documents import Document as LangChainDocument
from memograft.documents import Document
from memograft.errors import SettingsError

__all__ = ["DOCUMENT_BLOCKS", "from_artifact", "from_block", "json_like", "to_documents"]

DOCUMENT_BLOCKS = ("text-plain", "document", "search_result")

_DEEPEST = 20  # levels of nesting in metadata; cyclic ones end here


def to_documents(items: Iterable[Any] | None) -> tuple[Document, ...]:
    """Documents, in the same order (highest-ranked first).

    An item is a LangChain Document, a Memograft Document, a string (its text), or a mapping with `page_content` or
    `text`, and perhaps `id` and `metadata`. Metadata that is not JSON is replaced by its text.

    Raises:
        SettingsError: an item is none of these, or one document was passed where a list belongs.
    """
    if items is None:
        return ()
    if isinstance(items, str | Mapping | Document | LangChainDocument) or not isinstance(items, Iterable):
        raise SettingsError(
            f"`documents` must be a list of documents, got {type(items).__name__}; write documents=[...]"
        )
    return tuple(_to_document(item, position) for position, item in enumerate(items))


def from_artifact(artifact: Any) -> tuple[Document, ...]:
    """The Documents in a tool's artifact, which is one or a list of some. Anything else is the tool's business."""
    items = artifact if isinstance(artifact, list | tuple) else [artifact]
    return to_documents([item for item in items if _is_document(item)])


def _is_document(item: Any) -> bool:
    """Whether it is one; out of a checkpoint of LangGraph, a tool's Documents come as mappings of their fields."""
    if isinstance(item, Mapping):
        return item.get("type") == "Document" and isinstance(item.get("page_content"), str)
    return isinstance(item, Document | LangChainDocument)


def from_block(block: Mapping[str, Any], where: str) -> Document:
    """A content block of `DOCUMENT_BLOCKS` -> a document; `where` names the block in errors.

    Raises:
        SettingsError: its text is not in the block (a URL, a file id, a PDF).
    """
    text = _block_text(block)
    if text is None:
        raise SettingsError(
            f"{where} is a {block['type']!r} block without text, got the keys {sorted(block)}; put the document's text "
            "itself into the block (Memograft fetches nothing and reads no files)"
        )
    about = {k: block[k] for k in ("title", "context", "source", "url") if isinstance(block.get(k), str)}
    return Document(text, str(block.get("id") or ""), about)


def _to_document(item: Any, position: int) -> Document:
    if isinstance(item, Document):
        return Document(item.text, item.id, json_like(item.metadata))
    if isinstance(item, LangChainDocument):
        return Document(item.page_content, item.id or "", json_like(item.metadata))
    if isinstance(item, str):
        return Document(item)
    if isinstance(item, Mapping):
        text = item.get("page_content", item.get("text"))
        metadata = item.get("metadata") or {}
        if isinstance(text, str) and isinstance(metadata, Mapping):
            return Document(text, str(item.get("id") or ""), json_like(metadata))
    raise SettingsError(
        f"documents[{position}] must be a LangChain Document, a string, or a mapping with `page_content` or `text`, "
        f"got {type(item).__name__}; wrap it as Document(page_content=text)"
    )


def _block_text(block: Mapping[str, Any]) -> str | None:
    """The block's text, wherever the four dialects keep it."""
    source = block.get("source")
    for holder in (block, source if isinstance(source, Mapping) else {}):
        for key in ("text", "data"):
            if isinstance(holder.get(key), str) and holder.get("type") != "base64":
                return str(holder[key])
        content = holder.get("content")
        if isinstance(content, str):
            return content
        if isinstance(content, Sequence) and all(isinstance(part, Mapping) and "text" in part for part in content):
            return "\n\n".join(str(part["text"]) for part in content)
    if isinstance(block.get("base64"), str) and str(block.get("mime_type", "")).startswith("text/"):
        try:
            return base64.b64decode(block["base64"], validate=True).decode()
        except ValueError:  # not base64, or not UTF-8
            return None
    return None


def json_like(value: Mapping[Any, Any]) -> dict[str, Any]:
    """Metadata whose values JSON knows; others are replaced by their text."""
    return {str(k): _json_value(v, 1) for k, v in value.items()}


def _json_value(value: Any, depth: int) -> Any:
    """`value` where JSON knows it, else its text: a memory is saved with its documents, and must not fail then."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {str(k): _json_value(v, depth + 1) for k, v in value.items()}
    if depth < _DEEPEST and isinstance(value, list | tuple):
        return [_json_value(v, depth + 1) for v in value]
    try:
        return str(value)
    except Exception:  # somebody's __str__
        return f"<{type(value).__name__}>"
