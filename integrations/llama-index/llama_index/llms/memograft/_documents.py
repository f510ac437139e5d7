"""Convert LlamaIndex's nodes and Documents to `memograft.Document`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore
from memograft import Document
from memograft.chat import to_documents as read_documents
from memograft.errors import SettingsError

__all__ = ["of_node", "some_documents", "text_of", "to_documents"]


def to_documents(items: Iterable[Any] | None) -> tuple[Document, ...]:
    """Documents, in the same order (highest-ranked first).

    An item is a node or Document of LlamaIndex, a NodeWithScore, a Memograft Document, a string (its text), or a
    mapping with `text`. The document has the node's id. The metadata that LlamaIndex shows to models (all but
    `excluded_llm_metadata_keys`) becomes a separate document before the node's, so that it is in the prompt without
    being memorized with the text. Metadata that is not JSON is converted to text.

    Raises:
        SettingsError: an item is none of these, or `items` is one document instead of a list.
    """
    return read_documents(
        items,
        of_node,
        forms="a node, a Document, a NodeWithScore, a string or a mapping with `text`",
        remedy="wrap it as TextNode(text=...)",
    )


def some_documents(items: Iterable[Any] | None) -> tuple[Document, ...]:
    """The documents to memorize, at least one; see `to_documents`.

    Raises:
        SettingsError: the list is empty; or as `to_documents`.
    """
    if not (documents := to_documents(items)):
        raise SettingsError("`documents` must hold at least one document to memorize, got none; pass some")
    return documents


def of_node(item: object, position: int) -> list[Document] | None:
    """The documents of a node; None for other objects.

    Raises:
        SettingsError: the node is an image.
    """
    node = item.node if isinstance(item, NodeWithScore) else item
    if not isinstance(node, BaseNode):
        return None
    text, shown = text_of(node, f"documents[{position}]"), node.get_content(metadata_mode=MetadataMode.LLM)
    header = node.get_metadata_str(mode=MetadataMode.LLM).strip()
    if header and shown == f"{header}\n\n{text}".strip():
        return [Document(header, f"{node.node_id} metadata"), Document(text, node.node_id, node.metadata)]
    return [Document(shown, node.node_id, node.metadata)]  # without metadata, or with the user's own templates


def text_of(node: BaseNode, where: str) -> str:
    """A node's text, without its metadata; `where` names the node in errors.

    Raises:
        SettingsError: the node is an image without text.
    """
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    if not text.strip() and getattr(node, "image", None) is not None:
        raise SettingsError(
            f"{where} must have text, got an image ({type(node).__name__} {node.node_id}); Memograft's models read "
            "text: describe the image, or leave it out"
        )
    return text
