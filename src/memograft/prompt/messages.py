"""Messages of a conversation, before and after they are checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from memograft.errors import SettingsError

__all__ = ["ROLES", "Message", "Turn", "checked"]

Message = Mapping[str, object]  # `role`, `content`, and other fields for the template
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")  # roles that chat templates use


class Turn(NamedTuple):
    """A checked message; `more` are its fields besides role and content."""

    role: str
    content: str
    more: dict[str, object]


def checked(message: Message, position: int) -> Turn:
    """Check the message at a position of the conversation.

    Raises:
        SettingsError: role or content is not a string, or the role is unknown.
    """
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise SettingsError(
            f"messages[{position}] needs `role` and `content` as strings, got role={role!r} and content of type "
            f"{type(content).__name__}; write {{'role': 'user', 'content': '...'}}"
        )
    if role not in ROLES:
        raise SettingsError(
            f"the role of messages[{position}] must be one of {ROLES}, got {role!r:.80}; use one of them"
        )
    return Turn(role, content, {k: v for k, v in message.items() if k not in ("role", "content")})
