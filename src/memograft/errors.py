"""Every exception Memograft raises on purpose. Each message says the rule, the value that broke it, and a way out.

    MemograftError
    ├── SettingsError (ValueError)            a setting or a request that can never work
    ├── UnsupportedModelError (ValueError)    a model whose last FFN cannot be adapted exactly
    ├── PromptTooLongError (ValueError)       more tokens than the model's window holds
    ├── EmptyPromptError (ValueError)         nothing to answer
    ├── MemoryFormatError (ValueError)        a saved memory that is damaged or of another model
    ├── RequestCancelledError (RuntimeError)  the caller gave the request up
    ├── RequestTimeoutError (TimeoutError)    the request's own time limit passed
    ├── EngineClosedError (RuntimeError)      the engine was closed
    ├── MissingExtraError (ImportError)       an optional dependency is not installed
    └── StoreError
        ├── StoreCorruptError (ValueError)    a store's file is damaged or not ours
        ├── StoreLockedError (RuntimeError)   another process writes to the store
        ├── StoreReadOnlyError (RuntimeError) a write to a store opened read-only
        ├── EmbedderMismatchError (ValueError) the store was built with another embedder
        ├── ModelMismatchError (ValueError)   a datastore whose keys are another model's, or of another place
        └── FilterError (ValueError)          a metadata filter that is not well formed

All of them also derive from the builtin named in brackets, so code that knows nothing of Memograft can catch them.
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
    "SettingsError",
    "StoreCorruptError",
    "StoreError",
    "StoreLockedError",
    "StoreReadOnlyError",
    "UnsupportedModelError",
]


class MemograftError(Exception):
    """Base of everything Memograft raises on purpose."""


class SettingsError(MemograftError, ValueError):
    """A setting or a request that can never work."""


class UnsupportedModelError(MemograftError, ValueError):
    """The model's last FFN cannot be adapted exactly; the message names the reason and a way out."""


class PromptTooLongError(MemograftError, ValueError):
    """The prompt and the room for the answer do not fit the model's window.

    Attributes:
        tokens: tokens the prompt has.
        limit: tokens the prompt may have.
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
    """The caller gave the request up before it was answered."""


class RequestTimeoutError(MemograftError, TimeoutError):
    """The request's own time limit passed before it was answered."""


class EngineClosedError(MemograftError, RuntimeError):
    """The engine was closed, or is closing."""


class MissingExtraError(MemograftError, ImportError):
    """An optional dependency is not installed; the message holds the command that installs it."""


class StoreError(MemograftError):
    """Base of what a vector store or a datastore raises."""


class StoreCorruptError(StoreError, ValueError):
    """A file of the store is damaged or is not ours; the message names it."""


class StoreLockedError(StoreError, RuntimeError):
    """Another process has the store open for writing."""


class StoreReadOnlyError(StoreError, RuntimeError):
    """A write to a store that was opened read-only."""


class EmbedderMismatchError(StoreError, ValueError):
    """The store was built with another embedder; its vectors mean something else."""


class ModelMismatchError(StoreError, ValueError):
    """A datastore's keys are hidden states of another model, or of another place or width; they mean something else."""


class FilterError(StoreError, ValueError):
    """A metadata filter that is not well formed."""
