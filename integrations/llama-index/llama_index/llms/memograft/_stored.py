"""Convert LlamaIndex's nodes to passages of the core's store, and back.

A passage has the text and the metadata of the node, so that filters can use them. The other fields of the node
(relationships, templates, excluded keys, class) are in the metadata too, under names of this package. A passage that
was added by another program becomes a TextNode.
"""

from __future__ import annotations

import json
from typing import Any

from llama_index.core.schema import BaseNode, ImageNode, IndexNode, MetadataMode, Node, TextNode
from llama_index.core.schema import Document as SourceDocument
from memograft.documents import Document
from memograft.errors import SettingsError

REF_DOC_ID = "_ref_doc_id"  # the source document's id, for deleting and filtering
_CONTENT = "_node"
_DOC_IDS = ("document_id", "doc_id", "ref_doc_id")  # names of that id for filters in LlamaIndex's stores
_ADDED = (_CONTENT, REF_DOC_ID, *_DOC_IDS)
_CLASSES: dict[str, type[BaseNode]] = {cls.class_name(): cls for cls in (TextNode, IndexNode, Node, SourceDocument)}
_MEDIA = ("image_resource", "audio_resource", "video_resource")


def to_document(node: BaseNode, position: int) -> Document:
    """Return a node as a passage.

    Raises:
        SettingsError: `node` is not a node, has other content than text, or cannot be converted to JSON.
    """
    if not isinstance(node, BaseNode):
        raise SettingsError(
            f"nodes[{position}] must be a node of LlamaIndex, got {type(node).__name__}; wrap it as TextNode(text=...)"
        )
    where = f"nodes[{position}] (id {node.node_id!r})"
    medium = next((name for name in _MEDIA if getattr(node, name, None) is not None), None)
    if isinstance(node, ImageNode) or medium:
        raise SettingsError(
            f"{where} must be text, got {type(node).__name__}{f' with {medium}' if medium else ''}; keep images, audio "
            "and video in another store, such as StorageContext's image_store"
        )
    try:
        content = node.model_dump(mode="json", exclude={"id_", "embedding", "metadata", "text"})
    except (ValueError, TypeError) as error:
        raise SettingsError(
            f"{where} must be JSON, got a {type(node).__name__} that is not ({error}); convert the values in its "
            "relationships and its `obj` to strings, numbers, bools, None, lists or dicts"
        ) from error
    if any(name in node.metadata for name in _ADDED):  # filters use the user's values, and `to_node` restores them
        content["metadata"] = node.metadata
    try:
        kept = json.dumps(content, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):  # the store refuses the user's values by name
        kept = ""
    source = {} if node.ref_doc_id is None else dict.fromkeys(_DOC_IDS, node.ref_doc_id)
    ours = {_CONTENT: kept, **({REF_DOC_ID: node.ref_doc_id} if source else {})}
    return Document(node.get_content(MetadataMode.NONE), node.node_id, {**source, **node.metadata, **ours})


def to_node(document: Document) -> BaseNode:
    """Return a passage as a node."""
    metadata: dict[str, Any] = dict(document.metadata)
    content = _content(metadata)
    if content is None:
        return TextNode(id_=document.id, text=document.text, metadata=metadata)
    own = content.get("metadata") or {key: value for key, value in metadata.items() if key not in _ADDED}
    cls = _CLASSES.get(content["class_name"], TextNode)
    text = {"text": document.text} if issubclass(cls, TextNode) else {}  # other classes have a `text_resource`
    return cls.from_dict({**content, "id_": document.id, "metadata": own, **text})


def _content(metadata: dict[str, Any]) -> dict[str, Any] | None:
    """Return the other fields of the node; None if the passage is not from `to_document`.

    They are in the metadata as one string of JSON, so that filters do not match inside them.
    """
    try:
        content = json.loads(metadata[_CONTENT])
    except (KeyError, TypeError, ValueError):
        return None
    return content if isinstance(content, dict) and "class_name" in content else None
