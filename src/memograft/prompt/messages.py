"""Messages of a conversation, as callers pass them and as they are once they were checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from memograft.errors import SettingsError

__all__ = ["ROLES", "Message", "Turn", "checked"]

Message = Mapping[str, object]  # `role` and `content`, and what else the template may show
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")  # as chat templates know them


class Turn(NamedTuple):
    """A message that was checked; `more` is what it has beside its role and its content."""

    role: str
    content: str
    more: dict[str, object]


def checked(message: Message, position: int) -> Turn:
    """The message at a position of the conversation.

    Raises:
        SettingsError: its role or its content is no string, or the role is unknown.
    """
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise SettingsError(
            f"messages[{position}] needs `role` and `content` as strings, got role={role!r} and content of type "
            f"{type(content).__name__}; write {{'role': 'user', 'content': '...'}}"
        )
    if role not in ROLES:
        raise SettingsError(
            f"the role of messages[{position}] must be one of {ROLES}, got {role!r:.80}; say it as one of them"
        )
    return Turn(role, content, {k: v for k, v in message.items() if k not in ("role", "content")})
