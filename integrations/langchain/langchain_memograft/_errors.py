"""Memograft's errors as LangChain's, so that retries, fallbacks and summarization know them.

    PromptTooLongError                        -> ContextOverflowError
    RequestTimeoutError                       -> ModelTimeoutError (worth a retry)
    EngineClosedError                         -> ModelError (no retry opens it again)
    SettingsError, EmptyPromptError,
    UnsupportedModelError, MemoryFormatError,
    StoreError (of a datastore)               -> ModelInvalidRequestError
    OSError while a model is loaded           -> ModelNotFoundError

Each is both: code that catches Memograft's own error goes on working. Everything else passes untouched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.exceptions import (
    ContextOverflowError,
    ModelError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelTimeoutError,
)
from memograft.errors import (
    EmptyPromptError,
    EngineClosedError,
    MemoryFormatError,
    PromptTooLongError,
    RequestTimeoutError,
    SettingsError,
    StoreError,
    UnsupportedModelError,
)

__all__ = [
    "MemograftContextOverflowError",
    "MemograftEngineClosedError",
    "MemograftInvalidRequestError",
    "MemograftModelNotFoundError",
    "MemograftTimeoutError",
    "translated",
    "translated_loading",
]


class MemograftContextOverflowError(ContextOverflowError, PromptTooLongError):
    """The prompt and the room for the answer do not fit the model's window; see its `tokens` and `limit`."""


class MemograftTimeoutError(ModelTimeoutError, RequestTimeoutError):
    """The request's own time limit passed before it was answered."""


class MemograftEngineClosedError(ModelError, EngineClosedError):
    """The engine was closed; a new one is needed, so it is not worth a retry."""


class MemograftInvalidRequestError(ModelInvalidRequestError, SettingsError):
    """A setting or a request that can never work."""


class MemograftModelNotFoundError(ModelNotFoundError, OSError):
    """There is no such model, or it cannot be reached from here."""


_INVALID = (SettingsError, EmptyPromptError, UnsupportedModelError, MemoryFormatError, StoreError)


@contextmanager
def translated() -> Iterator[None]:
    """Raise Memograft's errors as LangChain's inside a `with` block."""
    try:
        yield
    except ModelError:  # translated already
        raise
    except PromptTooLongError as e:
        raise MemograftContextOverflowError(_said(e), tokens=e.tokens, limit=e.limit) from e
    except RequestTimeoutError as e:
        raise MemograftTimeoutError(_said(e)) from e
    except EngineClosedError as e:
        raise MemograftEngineClosedError(str(e)) from e
    except _INVALID as e:
        raise _as_invalid(e) from e


@contextmanager
def translated_loading(model: str) -> Iterator[None]:
    """`translated`, for loading a model: transformers says OSError where there is none."""
    try:
        with translated():
            yield
    except OSError as e:
        if isinstance(e, ModelError):
            raise
        raise MemograftModelNotFoundError(
            f"the model {model!r} cannot be loaded: {e}; pass a folder, a Hugging Face id that is reachable from here, "
            'a .gguf file, "smollm2" or "tiny"'
        ) from e


def _said(error: Exception) -> str:
    """The error's text, by the names that LangChain has for things."""
    return str(error).replace("`max_new_tokens`", "`max_tokens`")


def _as_invalid(error: Exception) -> ModelInvalidRequestError:
    """An invalid request that is still of the error's own class."""
    if isinstance(error, SettingsError):
        return MemograftInvalidRequestError(_said(error))
    kind = type(error)
    both = type(f"Memograft{kind.__name__}", (ModelInvalidRequestError, kind), {"__doc__": kind.__doc__})
    return both(_said(error))  # type: ignore[no-any-return]
