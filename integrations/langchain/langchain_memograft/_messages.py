"""Convert LangChain's messages to messages in OpenAI's form, for `memograft.chat.read_conversation`.

langchain_core's `convert_to_openai_messages` is not used, because it leaves out artifacts and document blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from memograft.chat import Conversation
from memograft.chat import read_conversation as read_plain
from memograft.errors import SettingsError

from langchain_memograft._documents import converted, from_artifact, to_documents

__all__ = ["plain_message", "read_conversation"]

_ROLES: tuple[tuple[type[BaseMessage], str], ...] = (
    (HumanMessage, "user"),
    (SystemMessage, "system"),
    (AIMessage, "assistant"),
    (ToolMessage, "tool"),
)


def read_conversation(
    messages: Sequence[BaseMessage], documents: Iterable[Any] | None = None, **how: Any
) -> Conversation:
    """Return the engine's messages and documents; see `memograft.chat.read_conversation`, also for `how`.

    Documents are also taken from `additional_kwargs["documents"]` of the last human message, and from the artifacts of
    tool messages after it.

    Raises:
        SettingsError: a message cannot be given to the model.
    """
    plain = [plain_message(message, f"messages[{n}]") for n, message in enumerate(messages)]
    given = None if documents is None else to_documents(documents)
    return read_plain(plain, given, between="", convert=converted, **how)


def plain_message(message: BaseMessage, where: str = "a message") -> dict[str, Any]:
    """Return a message in OpenAI's form, with its `documents`.

    Raises:
        SettingsError: chat templates have no role for this kind of message; `where` names the message.
    """
    role = next((role for kind, role in _ROLES if isinstance(message, kind)), None)
    if isinstance(message, ChatMessage):
        role = message.role
    if role is None:
        raise SettingsError(
            f"{where} is a {type(message).__name__}, for which chat templates have no role; use system, human, AI and "
            "tool messages"
        )
    plain: dict[str, Any] = {"role": role, "content": message.content}
    if message.name:
        plain["name"] = message.name
    if isinstance(message, HumanMessage):
        plain["documents"] = message.additional_kwargs.get("documents")
    elif isinstance(message, ToolMessage):
        plain["tool_call_id"] = message.tool_call_id
        found = from_artifact(message.artifact)
        if found or message.artifact in ([], ()):  # an empty list is the result of a search without hits
            plain["documents"] = found
    elif isinstance(message, AIMessage) and message.tool_calls:
        plain["tool_calls"] = [
            {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["args"]}}
            for call in message.tool_calls
        ]
    return plain
