"""Convert Memograft's errors to LangChain's, for LangChain's retries, fallbacks and summarization.

    PromptTooLongError                        -> ContextOverflowError
    RequestTimeoutError                       -> ModelTimeoutError (retryable)
    EngineClosedError                         -> ModelError (not retryable)
    SettingsError, EmptyPromptError,
    UnsupportedModelError, MemoryFormatError,
    StoreError (of a datastore)               -> ModelInvalidRequestError
    OSError while a model is loaded           -> ModelNotFoundError
    ServerError                               -> by its status, as `_BY_STATUS` has it; without one
                                                 ModelConnectionError, of 500 or more ModelAPIError (all retryable)

The raised errors are instances of both classes, so that Memograft's error can be caught too. Other errors are not
changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelPermissionDeniedError,
    ModelRateLimitError,
    ModelTimeoutError,
)
from memograft.chat import failure_of
from memograft.errors import (
    EngineClosedError,
    MemograftError,
    PromptTooLongError,
    RequestTimeoutError,
    ServerError,
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
    """The prompt and `max_tokens` do not fit into the model's context window; see `tokens` and `limit`."""


class MemograftTimeoutError(ModelTimeoutError, RequestTimeoutError):
    """The request was not answered within its `timeout`."""


class MemograftEngineClosedError(ModelError, EngineClosedError):
    """The engine is closed. A retry cannot succeed."""


class MemograftInvalidRequestError(ModelInvalidRequestError, SettingsError):
    """A setting or a request is invalid."""


class MemograftModelNotFoundError(ModelNotFoundError, OSError):
    """The model does not exist, or cannot be downloaded."""


_BY_STATUS: dict[int | None, type[ModelError]] = {
    None: ModelConnectionError,
    401: ModelAuthenticationError,
    403: ModelPermissionDeniedError,
    404: ModelNotFoundError,
    429: ModelRateLimitError,
}

# Names in the core's error texts, and the names of the same things in LangChain.
_WORDS = (
    ("`max_new_tokens`", "`max_tokens`"),
    ("`documents` of the last user message", '`additional_kwargs["documents"]` of the last human message'),
    ("wrap it as memograft.Document(text)", "wrap it as Document(page_content=text)"),
)


def in_langchain_words(text: str) -> str:
    """Return the text of an error of the core with LangChain's names of settings and messages."""
    for ours, theirs in _WORDS:
        text = text.replace(ours, theirs)
    return text


@contextmanager
def translated() -> Iterator[None]:
    """Convert Memograft's errors in a `with` block to LangChain's."""
    try:
        yield
    except ModelError:  # converted already
        raise
    except MemograftError as e:
        error = _as_langchain(e)
        if error is None:
            raise
        raise error from e


@contextmanager
def translated_loading(model: str) -> Iterator[None]:
    """`translated`, for loading a model: transformers raises OSError if there is no model."""
    try:
        with translated():
            yield
    except OSError as e:
        if isinstance(e, ModelError):
            raise
        raise MemograftModelNotFoundError(
            f"the model {model!r} cannot be loaded: {e}; pass a folder, a Hugging Face id that can be downloaded, "
            'a .gguf file, "smollm2" or "tiny"'
        ) from e


def _as_langchain(error: MemograftError) -> Exception | None:
    """Return the error as an instance of LangChain's class and of its own class; None if LangChain has no class."""
    text, kind = in_langchain_words(str(error)), failure_of(error)
    if isinstance(error, PromptTooLongError):
        return MemograftContextOverflowError(text, tokens=error.tokens, limit=error.limit)
    if kind == "timeout":
        return MemograftTimeoutError(text)
    if kind == "closed":
        return MemograftEngineClosedError(text)
    if isinstance(error, ServerError):
        server = _both(_BY_STATUS.get(error.status, ModelAPIError), error)(text)
        assert isinstance(server, ServerError)
        server.status = error.status
        return server
    if kind != "invalid":
        return None
    if isinstance(error, SettingsError):
        return MemograftInvalidRequestError(text)
    return _both(ModelInvalidRequestError, error)(text)


def _both(theirs: type[ModelError], error: MemograftError) -> type[Exception]:
    """A class of errors that is LangChain's and the error's own."""
    own = type(error)
    return type(f"Memograft{own.__name__}", (theirs, own), {"__doc__": own.__doc__})
