"""Chat templates that would never end: programs that come with a model, whose sandbox bounds no loop within a loop."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import TraceFunction

__all__ = ["LIMIT", "bounded"]

LIMIT = 2_000_000  # a conversation of ten thousand messages and a hundred tools takes six hundred thousand
_TEMPLATE = "<template>"  # what Jinja calls the file of a template that was compiled from a string


class _Endless(BaseException):
    """No Exception: Jinja, which computes constants beforehand, would go on after one, and Python traces no further."""


@contextmanager
def bounded(limit: int) -> Iterator[None]:
    """Inside, and in this thread, so many steps may be done: lines of templates, and calls of whatever is in Python.

    Calls count since Jinja's own functions have loops. A debugger that is at work counts nothing.

    Raises:
        RuntimeError: there were more.
    """
    if sys.gettrace() is not None:
        yield
        return
    left = limit

    def step(frame: FrameType, event: str, _argument: object) -> TraceFunction | None:
        nonlocal left
        if event in ("call", "line"):
            left -= 1
            if left < 0:
                raise _Endless
        return step if frame.f_code.co_filename == _TEMPLATE else None

    sys.settrace(step)
    try:
        yield
    except _Endless:
        raise RuntimeError(f"it has not ended after {limit} steps") from None
    finally:
        sys.settrace(None)
