"""Classify exceptions, for APIs and frameworks that have a status or class for each kind of failure."""

from __future__ import annotations

from typing import Literal

from memograft.errors import (
    EmptyPromptError,
    EngineClosedError,
    MemoryFormatError,
    PromptTooLongError,
    RequestCancelledError,
    RequestTimeoutError,
    ServerError,
    SettingsError,
    StoreError,
    UnsupportedModelError,
)

__all__ = ["Failure", "failure_of", "message_text"]

Failure = Literal["too long", "timeout", "closed", "cancelled", "server", "invalid", "other"]

_KINDS: tuple[tuple[type[Exception], Failure], ...] = (
    (PromptTooLongError, "too long"),
    (RequestTimeoutError, "timeout"),
    (EngineClosedError, "closed"),
    (RequestCancelledError, "cancelled"),
    (ServerError, "server"),
    *((kind, "invalid") for kind in (SettingsError, EmptyPromptError, UnsupportedModelError, MemoryFormatError)),
    (StoreError, "invalid"),  # of a datastore in the request
)


def failure_of(error: BaseException) -> Failure:
    """The kind of failure.

    "too long": the prompt does not fit the model's window; "timeout": the request's time limit passed, and a retry may
    succeed; "closed": the engine is closed; "cancelled": the caller cancelled the request; "server": a server of a
    `RemoteEngine` did not answer; "invalid": the request can never be answered; "other": an exception that Memograft
    does not raise deliberately.
    """
    return next((name for kind, name in _KINDS if isinstance(error, kind)), "other")


def message_text(error: BaseException) -> str:
    """The error's text, with `max_tokens` for `max_new_tokens`, as chat APIs name it."""
    return str(error).replace("`max_new_tokens`", "`max_tokens`")
