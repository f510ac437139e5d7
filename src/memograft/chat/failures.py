"""Which kind of failure an exception is: what an API answers with another status, or a framework with another class."""

from __future__ import annotations

from typing import Literal

from memograft.errors import (
    EmptyPromptError,
    EngineClosedError,
    MemoryFormatError,
    PromptTooLongError,
    RequestCancelledError,
    RequestTimeoutError,
    SettingsError,
    StoreError,
    UnsupportedModelError,
)

__all__ = ["Failure", "failure_of", "message_text"]

Failure = Literal["too long", "timeout", "closed", "cancelled", "invalid", "other"]

_KINDS: tuple[tuple[type[Exception], Failure], ...] = (
    (PromptTooLongError, "too long"),
    (RequestTimeoutError, "timeout"),
    (EngineClosedError, "closed"),
    (RequestCancelledError, "cancelled"),
    *((kind, "invalid") for kind in (SettingsError, EmptyPromptError, UnsupportedModelError, MemoryFormatError)),
    (StoreError, "invalid"),  # of a datastore: the request names it
)


def failure_of(error: BaseException) -> Failure:
    """The kind.

    "too long": the prompt does not fit the model's window; "timeout": the request's own time is up, and another try may
    do better; "closed": the engine takes no requests any more; "cancelled": the caller gave it up; "invalid": the
    request can never work; "other": everything that Memograft does not raise on purpose.
    """
    return next((name for kind, name in _KINDS if isinstance(error, kind)), "other")


def message_text(error: BaseException) -> str:
    """The error's text, with `max_tokens`, as chat APIs have it, for `max_new_tokens`."""
    return str(error).replace("`max_new_tokens`", "`max_tokens`")
