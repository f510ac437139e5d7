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
from memograft.chat import failure_of
from memograft.errors import (
    EngineClosedError,
    MemograftError,
    PromptTooLongError,
    RequestTimeoutError,
    SettingsError,
)

__all__ = [
    "MemograftContextOverflowError",
    "MemograftEngineClosedError",
    "MemograftInvalidRequestError",
    "MemograftModelNotFoundError",
    "MemograftTimeoutError",
    "in_langchain_words",
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


# What the core's errors name, by the names that it has in LangChain.
_WORDS = (
    ("`max_new_tokens`", "`max_tokens`"),
    ("`documents` of the last user message", '`additional_kwargs["documents"]` of the last human message'),
    ("wrap it as memograft.Document(text)", "wrap it as Document(page_content=text)"),
)


def in_langchain_words(text: str) -> str:
    """Return the text of an error of the core with the names that LangChain has for settings and messages."""
    for ours, theirs in _WORDS:
        text = text.replace(ours, theirs)
    return text


@contextmanager
def translated() -> Iterator[None]:
    """Raise Memograft's errors as LangChain's inside a `with` block."""
    try:
        yield
    except ModelError:  # translated already
        raise
    except MemograftError as e:
        error = _as_langchain(e)
        if error is None:
            raise
        raise error from e


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


def _as_langchain(error: MemograftError) -> Exception | None:
    """Return the error in LangChain's class for its kind, which is also of its own; None if there is none for it."""
    text, kind = in_langchain_words(str(error)), failure_of(error)
    if isinstance(error, PromptTooLongError):
        return MemograftContextOverflowError(text, tokens=error.tokens, limit=error.limit)
    if kind == "timeout":
        return MemograftTimeoutError(text)
    if kind == "closed":
        return MemograftEngineClosedError(text)
    if kind != "invalid":
        return None
    if isinstance(error, SettingsError):
        return MemograftInvalidRequestError(text)
    own = type(error)
    both: type[Exception] = type(f"Memograft{own.__name__}", (ModelInvalidRequestError, own), {"__doc__": own.__doc__})
    return both(text)
