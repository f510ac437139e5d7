"""Arguments that do not exist, for the error that refuses them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["unknown_names"]


def unknown_names(given: Iterable[str], known: Iterable[str]) -> str:
    """A text with the unknown names, the most similar known ones, and all known ones; "" if all names are known.

    It continues "... has no": "'temprature' (did you mean 'temperature'?); there are: max_tokens, ...".
    """
    known = sorted(known)
    unknown = [name for name in given if name not in known]
    if not unknown:
        return ""
    meant = [match for name in unknown for match in difflib.get_close_matches(str(name), known, 1)]
    hint = f" (did you mean {', '.join(map(repr, meant))}?)" if meant else ""
    return f"{', '.join(map(repr, unknown))}{hint}; there are: {', '.join(known)}"
