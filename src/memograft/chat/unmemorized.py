"""A warning if a prompt contains documents as text, which the model reads without memorizing."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable

__all__ = ["warn_of_context"]

_CONTEXT = re.compile(r"(?:\bcontext\b[^\n]{0,40}:|<context>)\s*\S[\s\S]{80}", re.IGNORECASE)  # followed by a text

_warned = False


def warn_of_context(texts: Iterable[str], remedy: str) -> None:
    """Warn, once per process, if one of the texts contains a context.

    Args:
        texts: of the system messages and of the last message, as the caller wrote them.
        remedy: how documents are passed instead; the end of the warning.
    """
    global _warned
    if _warned or not any(map(_CONTEXT.search, texts)):
        return
    _warned = True
    said = f"the prompt seems to hold documents as text, which are read and not memorized; {remedy}"
    warnings.warn(said, UserWarning, stacklevel=3)
