"""What a datastore can be built from in LlamaIndex -> the core's examples. Knows no engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore
from llama_index.llms.memograft._documents import json_like, refuse_image, to_documents
from llama_index.llms.memograft._messages import grouped, to_engine
from memograft.documents import Document
from memograft.errors import SettingsError
from memograft.rtd.examples import as_example, turns

__all__ = ["to_examples"]

_FORMS = (
    "a node, a Document, a list of ChatMessages, (messages, answer), (prompt, answer), (documents, question, answer), "
    "a mapping or a text"
)


def to_examples(items: Iterable[Any]) -> Iterable[dict[str, Any]]:
    """Examples as `Datastore.build` takes them. Those of a list are all checked before the first is learned.

    A node or Document is a raw text. A history of ChatMessages is an example for each answer in it: all that was said
    before is its prompt, the blocks of documents in that its documents. Everything else is what the core takes, with
    nodes, Documents and ChatMessages in it, too. Metadata that is no JSON becomes text.

    Raises:
        SettingsError: an item is none of these, or there is nothing in it to learn from.
    """
    if isinstance(items, str | Mapping | Document | BaseNode | NodeWithScore | ChatMessage) or not isinstance(
        items, Iterable
    ):
        raise SettingsError(
            f"`examples` must be a list of examples, got one {type(items).__name__}; write examples=[...]"
        )
    examples = (example for number, item in enumerate(items) for example in _examples(item, number))
    return list(examples) if isinstance(items, Sized) else examples


def _examples(item: Any, number: int) -> Iterator[dict[str, Any]]:
    where = f"examples[{number}]"
    try:
        found = _history(item) if _is_history(item) else [_one(item)]
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from error
    if not found:
        raise SettingsError(
            f"{where} must hold a text of the assistant after another message, got {len(item)} messages without; leave "
            "it out"
        )
    for example in found:
        as_example(example, number)  # the core's own checks, while the number is the caller's
        yield example


def _is_history(item: Any) -> bool:
    return isinstance(item, list | tuple) and len(item) > 0 and all(isinstance(part, ChatMessage) for part in item)


def _history(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """An example for each answer in a conversation."""
    said = grouped(messages)
    return [
        {
            "messages": before,
            "answer": answer,
            "documents": [document for _, found in said[: len(before)] for document in found],
        }
        for before, answer in turns([turn for turn, _ in said])
    ]


def _one(item: Any) -> dict[str, Any]:
    if isinstance(item, NodeWithScore):
        item = item.node
    if isinstance(item, BaseNode):
        text = item.get_content(metadata_mode=MetadataMode.NONE)
        refuse_image(item, text, "it")
        return {"text": text, "id": item.node_id, "metadata": json_like(item.metadata)}
    if isinstance(item, Document):
        return {"text": item.text, "id": item.id, "metadata": json_like(item.metadata)}
    if isinstance(item, str):
        return {"text": item}
    if isinstance(item, list | tuple) and len(item) == 2:
        asked, answer = item
        return _asked({"prompt" if isinstance(asked, str) else "messages": asked, "answer": answer})
    if isinstance(item, list | tuple) and len(item) == 3:
        return _asked(dict(zip(("documents", "question", "answer"), item, strict=True)))
    if isinstance(item, Mapping):
        return _asked(item)
    hint = "pass its text"
    if isinstance(item, ChatMessage):
        hint = "write [[message, message, ...]], one list for each conversation"
    elif isinstance(item, list | tuple):
        hint = "write messages as ChatMessage(role=..., content=...)"
    elif hasattr(item, "get_all"):
        hint = "pass what its get_all() returns"
    raise SettingsError(f"it must be {_FORMS}, got {type(item).__name__}; {hint}")


def _asked(item: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping of the core's, with what LlamaIndex has for its parts."""
    example, documents = dict(item), list(to_documents(item.get("documents")))
    messages = example.get("messages") or ()
    if isinstance(messages, ChatMessage):
        messages = [messages]
    if _is_history(messages):
        example["messages"], found = to_engine(messages)
        documents += found
    elif messages and not (isinstance(messages, list | tuple) and all(isinstance(m, Mapping) for m in messages)):
        raise SettingsError(
            f"its messages must be a list of ChatMessages or of mappings, got {messages!r}; write "
            '[ChatMessage(role="user", content="...")]'
        )
    if isinstance(answer := example.get("answer"), ChatMessage):
        example["answer"] = answer.content
    metadata = example.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise SettingsError(f"its `metadata` must be a mapping, got {type(metadata).__name__}; write {{...}}")
    return example | {"documents": documents, "metadata": json_like(metadata)}
