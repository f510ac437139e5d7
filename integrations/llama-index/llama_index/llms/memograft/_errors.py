"""Errors of this package besides Memograft's errors, which are ValueErrors, RuntimeErrors and TimeoutErrors.

LlamaIndex has no error classes for models; its integrations raise builtin errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from memograft.chat import message_text
from memograft.errors import MemograftError

__all__ = ["ModelNotLoadedError", "NotAnsweredError", "StructuredOutputError", "ToolCallError", "loud", "named"]


class NotAnsweredError(MemograftError, RuntimeError):
    """A prompt of a synthesizer could not be answered; the reason is in `__cause__`.

    It is not a ValueError, because LlamaIndex's Refine and CompactAndRefine, and the chat engines that use them, handle
    a ValueError as a malformed answer: they log it and return "Empty Response".
    """


class ModelNotLoadedError(MemograftError, ValueError):
    """The model does not exist, or cannot be downloaded."""


class StructuredOutputError(MemograftError, ValueError):
    """The answer matches the JSON schema, but not the validators of the pydantic class."""


class ToolCallError(MemograftError, ValueError):
    """A response has no tool call, or one that cannot be executed, such as a call that was cut off."""


@contextmanager
def loud() -> Iterator[None]:
    """Convert errors that LlamaIndex's synthesizers would catch to NotAnsweredError, inside a `with` block."""
    try:
        yield
    except (ValueError, TypeError) as e:
        raise NotAnsweredError(str(e)) from e


@contextmanager
def named() -> Iterator[None]:
    """Replace the core's names of settings in errors by those of this package, inside a `with` block."""
    try:
        yield
    except MemograftError as e:
        e.args = (message_text(e),)
        raise
