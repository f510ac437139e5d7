"""What is raised here beside Memograft's own errors, which are ValueErrors, RuntimeErrors and TimeoutErrors already.

LlamaIndex has no tree of errors for models: its own integrations raise the builtin ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from memograft.chat import message_text
from memograft.errors import MemograftError

__all__ = ["ModelNotLoadedError", "NotAnsweredError", "StructuredOutputError", "ToolCallError", "loud", "named"]


class NotAnsweredError(MemograftError, RuntimeError):
    """A prompt of a synthesizer could not be answered; its cause says why.

    It is no ValueError on purpose: LlamaIndex's Refine and CompactAndRefine, and the chat engines that are made of
    them, take a ValueError for a badly formatted answer, log it, and return "Empty Response".
    """


class ModelNotLoadedError(MemograftError, ValueError):
    """There is no such model, or it cannot be reached from here."""


class StructuredOutputError(MemograftError, ValueError):
    """The answer is JSON of the schema, and the pydantic class still refuses it."""


class ToolCallError(MemograftError, ValueError):
    """A response has no tool call, or one that cannot be executed, such as a call that was cut off."""


@contextmanager
def loud() -> Iterator[None]:
    """Inside a `with` block, raise as NotAnsweredError what LlamaIndex's synthesizers would swallow."""
    try:
        yield
    except (ValueError, TypeError) as e:
        raise NotAnsweredError(str(e)) from e


@contextmanager
def named() -> Iterator[None]:
    """Inside a `with` block, errors of Memograft use this package's names of settings."""
    try:
        yield
    except MemograftError as e:
        e.args = (message_text(e),)
        raise
