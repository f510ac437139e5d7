"""Convert examples in LangChain's forms to mappings for `memograft.Datastore`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue
from memograft.chat import to_examples as examples_of

from langchain_memograft._documents import converted
from langchain_memograft._messages import plain_message

__all__ = ["to_examples"]

_ROLES = ("human", "user", "ai", "assistant", "system")


def to_examples(examples: Iterable[Any], *, takes_tools: bool = False) -> Iterable[dict[str, Any]]:
    """Return examples in the core's form; see `memograft.chat.to_examples`.

    Raises:
        SettingsError: an item is not an example, or `examples` is not a list.
    """
    return examples_of(examples, plain=_plain, convert=converted, takes_tools=takes_tools, between="")


def _plain(item: object) -> object:
    """Return LangChain's messages, prompts and documents as plain data, and other objects unchanged."""
    if isinstance(item, BaseMessage):
        return plain_message(item)
    if isinstance(item, Document):
        return converted(item)
    if isinstance(item, PromptValue):
        return [plain_message(message) for message in item.to_messages()]
    if isinstance(item, list) and item and all(map(_is_pair, item)):
        return [plain_message(message) for message in convert_to_messages(item)]
    return item


def _is_pair(item: object) -> bool:
    """Return whether the item is a message in LangChain's short form: ("human", "...")."""
    return isinstance(item, tuple) and len(item) == 2 and item[0] in _ROLES
