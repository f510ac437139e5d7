"""Chat templates that would never end: programs that come with a model, whose sandbox bounds no loop within a loop."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["LIMIT", "bounded"]

LIMIT = 2_000_000  # lines of a template; a conversation of ten thousand messages takes some hundred thousand
_TEMPLATE = "<template>"  # what Jinja calls the file of a template that was compiled from a string


@contextmanager
def bounded(limit: int) -> Iterator[None]:
    """Inside, and in this thread, templates may run so many lines together. A debugger that is at work counts none.

    Raises:
        RuntimeError: there were more.
    """
    if sys.gettrace() is not None:
        yield
        return
    left = limit

    def line(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left < 0:
                raise RuntimeError(f"it has not ended after {limit} lines")
        return line

    def call(frame: FrameType, _event: str, _argument: Any) -> Any:
        return line if frame.f_code.co_filename == _TEMPLATE else None

    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(None)
