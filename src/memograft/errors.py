"""All exceptions that Memograft raises deliberately. A message states the rule, the value that broke it, and a remedy.

    MemograftError
    ├── SettingsError (ValueError)            an invalid setting or request
    ├── UnsupportedModelError (ValueError)    a model whose last FFN cannot be adapted exactly
    ├── PromptTooLongError (ValueError)       more tokens than the model's window
    ├── EmptyPromptError (ValueError)         nothing to answer
    ├── MemoryFormatError (ValueError)        a saved memory that is damaged or of another model
    ├── RequestCancelledError (RuntimeError)  the caller cancelled the request
    ├── RequestTimeoutError (TimeoutError)    the request's time limit passed
    ├── EngineClosedError (RuntimeError)      the engine was closed
    ├── ServerError (RuntimeError)            a server cannot be reached, or does not answer
    ├── MissingExtraError (ImportError)       an optional dependency is not installed
    └── StoreError
        ├── StoreCorruptError (ValueError)    a store's file is damaged or of another program
        ├── StoreLockedError (RuntimeError)   another process writes to the store
        ├── StoreReadOnlyError (RuntimeError) a write to a store opened read-only
        ├── EmbedderMismatchError (ValueError) the store was built with another embedder
        ├── ModelMismatchError (ValueError)   a datastore of another model or place
        └── FilterError (ValueError)          a malformed metadata filter

All of them also derive from the builtin in brackets, so that code can catch them without importing Memograft.
"""

from __future__ import annotations

__all__ = [
    "EmbedderMismatchError",
    "EmptyPromptError",
    "EngineClosedError",
    "FilterError",
    "MemograftError",
    "MemoryFormatError",
    "MissingExtraError",
    "ModelMismatchError",
    "PromptTooLongError",
    "RequestCancelledError",
    "RequestTimeoutError",
    "ServerError",
    "SettingsError",
    "StoreCorruptError",
    "StoreError",
    "StoreLockedError",
    "StoreReadOnlyError",
    "UnsupportedModelError",
]


class MemograftError(Exception):
    """Base of all exceptions that Memograft raises deliberately."""


class SettingsError(MemograftError, ValueError):
    """An invalid setting or request."""


class UnsupportedModelError(MemograftError, ValueError):
    """The model's last FFN cannot be adapted exactly; the message has the reason and a remedy."""


class PromptTooLongError(MemograftError, ValueError):
    """The prompt and the room for the answer do not fit the model's window.

    Attributes:
        tokens: number of tokens of the prompt; 0 if a server does not tell.
        limit: maximum number of tokens of a prompt; 0 if a server does not tell.
    """

    def __init__(self, message: str, *, tokens: int, limit: int) -> None:
        super().__init__(message)
        self.tokens = tokens
        self.limit = limit


class EmptyPromptError(MemograftError, ValueError):
    """A request without a question and without messages."""


class MemoryFormatError(MemograftError, ValueError):
    """A saved memory that is damaged, incomplete, or made for another model."""


class RequestCancelledError(MemograftError, RuntimeError):
    """The caller cancelled the request before it was answered."""


class RequestTimeoutError(MemograftError, TimeoutError):
    """The request's time limit passed before it was answered."""


class EngineClosedError(MemograftError, RuntimeError):
    """The engine was closed, or is closing."""


class ServerError(MemograftError, RuntimeError):
    """A server cannot be reached, refuses its client, is busy, or failed.

    Attributes:
        status: the HTTP status; None if there was no response, or it broke off.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class MissingExtraError(MemograftError, ImportError):
    """An optional dependency is not installed; the message has the command that installs it."""


class StoreError(MemograftError):
    """Base of the exceptions of a vector store or a datastore."""


class StoreCorruptError(StoreError, ValueError):
    """A file of the store is damaged or was not written by Memograft; the message names it."""


class StoreLockedError(StoreError, RuntimeError):
    """Another process has the store open for writing."""


class StoreReadOnlyError(StoreError, RuntimeError):
    """A write to a store that was opened read-only."""


class EmbedderMismatchError(StoreError, ValueError):
    """The store was built with another embedder, so its vectors cannot be compared."""


class ModelMismatchError(StoreError, ValueError):
    """A datastore's keys are hidden states of another model, place or width, so they cannot be compared."""


class FilterError(StoreError, ValueError):
    """A malformed metadata filter."""
