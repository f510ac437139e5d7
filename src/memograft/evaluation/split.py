"""Which questions are for tuning and which for reporting, and in which order: by hashes of the questions alone.

So nothing depends on a file's order or on a random state, two files share their split where they share a question, and
the first 100 questions are a random sample that is the beginning of the first 300.
"""

from __future__ import annotations

import hashlib

__all__ = ["digest", "place", "split_of", "squeezed"]


def squeezed(question: str) -> str:
    """The question without what makes one question look like two: case, and how wide its spaces are."""
    return " ".join(question.split()).casefold()


def split_of(question: str) -> str:
    """ "tune" if the first byte of the SHA-256 of the squeezed question is even, else "test".

    >>> split_of("Who wrote  Middlemarch?") == split_of("who wrote middlemarch?")
    True
    """
    return "test" if hashlib.sha256(squeezed(question).encode("utf-8", "replace")).digest()[0] % 2 else "tune"


def digest(*texts: str) -> str:
    """What things are ordered by: the hexadecimal SHA-256 of the squeezed texts."""
    return hashlib.sha256("\0".join(map(squeezed, texts)).encode("utf-8", "replace")).hexdigest()


def place(count: int, *texts: str) -> int:
    """A number below `count` that these texts decide."""
    return int(digest(*texts), 16) % count
