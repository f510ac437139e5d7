"""What LlamaIndex calls a document, a node or a context -> `memograft.Document`. Knows nothing of prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from memograft.documents import Document
from memograft.errors import SettingsError

__all__ = ["json_like", "refuse_image", "split_context", "to_documents"]

_BORDER = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?\u2026\u3002\uff01\uff1f\"\u201d)])[ \t]*\n\s*")


def to_documents(items: Iterable[Any] | None) -> tuple[Document, ...]:
    """Documents, in the same order (highest-ranked first).

    An item is a node or Document of LlamaIndex, a NodeWithScore, a Memograft Document, a string (its text), or a
    mapping with `text`. A node's id is the document's. What LlamaIndex shows to models of its metadata (all but
    `excluded_llm_metadata_keys`) becomes a document before it: there to be read, and out of the way of memorizing,
    which it would dilute. Metadata that is no JSON becomes text.

    Raises:
        SettingsError: an item is none of these, or one document was passed where a list belongs.
    """
    if items is None:
        return ()
    if isinstance(items, str | Mapping | Document | BaseNode | NodeWithScore) or not isinstance(items, Iterable):
        raise SettingsError(
            f"`documents` must be a list of documents, got one {type(items).__name__}; write documents=[...]"
        )
    return tuple(document for position, item in enumerate(items) for document in _to_documents(item, position))


def split_context(context: str, *, by_line: bool = False) -> list[Document]:
    """A packed context -> documents: LlamaIndex joins nodes by blank lines, so every border of a node is one.

    A node may have blank lines of its own; its paragraphs become documents then, which are judged and memorized one by
    one. So does its metadata, which stands before it. `by_line`: nodes were joined by line breaks; a line that ends no
    sentence goes on in the next.
    """
    paragraphs = [p for p in _BORDER.split(context.strip()) if p]
    if by_line:
        paragraphs = [p for paragraph in paragraphs for p in _SENTENCE_END.split(paragraph) if p]
    return [Document(paragraph) for paragraph in paragraphs]


def json_like(metadata: Mapping[Any, Any]) -> dict[str, Any]:
    """`metadata` where JSON knows it, else its text: a memory is saved with its documents, and must not fail then."""
    return {str(key): _json_value(value) for key, value in metadata.items()}


def refuse_image(node: BaseNode, text: str, where: str) -> None:
    """Say of a node without text that it is an image."""
    if not text.strip() and getattr(node, "image", None) is not None:
        raise SettingsError(
            f"{where} must have text, got an image ({type(node).__name__} {node.node_id}); Memograft's models read "
            "text: describe the image, or leave it out"
        )


def _to_documents(item: Any, position: int) -> list[Document]:
    if isinstance(item, NodeWithScore):
        item = item.node
    if isinstance(item, BaseNode):
        return _of_node(item, position)
    if isinstance(item, Document):
        return [Document(item.text, item.id, json_like(item.metadata))]
    if isinstance(item, str):
        return [Document(item)]
    if isinstance(item, Mapping) and isinstance(item.get("text"), str):
        metadata = item.get("metadata") or {}
        if isinstance(metadata, Mapping):
            return [Document(item["text"], str(item.get("id") or item.get("id_") or ""), json_like(metadata))]
    hint = "pass its text" if isinstance(item, QueryBundle) else "wrap it as TextNode(text=...)"
    raise SettingsError(
        f"documents[{position}] must be a node, a Document, a NodeWithScore, a string or a mapping with `text`, got "
        f"{type(item).__name__}; {hint}"
    )


def _of_node(node: BaseNode, position: int) -> list[Document]:
    shown, content = (node.get_content(metadata_mode=mode) for mode in (MetadataMode.LLM, MetadataMode.NONE))
    refuse_image(node, shown, f"documents[{position}]")
    metadata, header = json_like(node.metadata), node.get_metadata_str(mode=MetadataMode.LLM).strip()
    if header and shown == f"{header}\n\n{content}".strip():
        return [Document(header, f"{node.node_id} metadata"), Document(content, node.node_id, metadata)]
    return [Document(shown, node.node_id, metadata)]  # without metadata, or in a form of somebody's own


def _json_value(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, default=str, allow_nan=False))
    except Exception:  # cyclic, not a number, keys that are no strings, or somebody's __str__
        return repr(value) if not isinstance(value, Mapping | list | tuple) else f"<{type(value).__name__}>"
