"""Limit the running time of chat templates. They are programs, and Jinja's sandbox does not limit nested loops."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import TraceFunction

__all__ = ["LIMIT", "bounded"]

LIMIT = 2_000_000  # a conversation of 10,000 messages and 100 tools takes 600,000
_TEMPLATE = "<template>"  # Jinja's file name for templates compiled from strings


class _Endless(BaseException):
    """Not an Exception: Jinja catches those when it folds constants, and would continue untraced."""


@contextmanager
def bounded(limit: int) -> Iterator[None]:
    """Inside, in this thread, allow `limit` steps: lines of templates, and calls of any Python code.

    Calls count because Jinja's own functions have loops. Under a debugger nothing is counted.

    Raises:
        RuntimeError: the limit was exceeded.
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
