"""Convert examples in LlamaIndex's forms to mappings for `memograft.Datastore`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.llms.memograft._documents import of_node, text_of
from llama_index.llms.memograft._messages import to_openai
from memograft import Document
from memograft.chat import to_examples as read_examples

__all__ = ["to_examples"]

_FORMS = (
    "a node, a Document, a list of ChatMessages, (messages, answer), (prompt, answer), (documents, question, answer), "
    "a mapping or a text"
)


def to_examples(items: Iterable[Any], *, takes_tools: bool = False) -> Iterable[dict[str, object]]:
    """Examples for `Datastore.build`. All items of a list are checked before the first is added.

    A node or Document is a raw text. A history of ChatMessages is an example for each answer in it: the messages before
    the answer are the prompt, and their document blocks are its documents. Other items have the core's forms, and can
    contain nodes, Documents and ChatMessages.

    Args:
        items: the examples.
        takes_tools: whether the model's chat template supports tool calls (`Engine.takes_tools`).

    Raises:
        SettingsError: an item is not an example, or has no text.
    """
    return read_examples(items, plain=_plain, convert=of_node, takes_tools=takes_tools, forms=_FORMS)


def _plain(item: object) -> object:
    """A message or a node in the core's form; other objects unchanged."""
    node = item.node if isinstance(item, NodeWithScore) else item
    if isinstance(node, BaseNode):
        return Document(text_of(node, "it"), node.node_id, node.metadata)
    if isinstance(item, list | tuple) and item and all(isinstance(part, ChatMessage) for part in item):
        return _joined(to_openai(item))
    return to_openai([item])[0] if isinstance(item, ChatMessage) else item


def _joined(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join consecutive answers, because a request joins consecutive messages of one role."""
    joined: list[dict[str, Any]] = []
    for message in messages:
        last = joined[-1] if joined else {}
        two = [last, message]
        if all(m.get("role") == "assistant" and isinstance(m["content"], str) and "tool_calls" not in m for m in two):
            last["content"] = f"{last['content']}\n\n{message['content']}"
        else:
            joined.append(message)
    return joined
