"""Assign questions to the tuning or test split and order them, by hashes of the questions only.

So the result does not depend on a file's order or a random state, a question that is in two files has the same split,
and the first 100 questions are a random sample that is part of the first 300.
"""

from __future__ import annotations

import hashlib

__all__ = ["digest", "place", "split_of", "squeezed"]


def squeezed(question: str) -> str:
    """The question with normalised case and white space, so that variants are equal."""
    return " ".join(question.split()).casefold()


def split_of(question: str) -> str:
    """ "tune" if the first byte of the SHA-256 of the squeezed question is even, else "test".

    >>> split_of("Who wrote  Middlemarch?") == split_of("who wrote middlemarch?")
    True
    """
    return "test" if hashlib.sha256(squeezed(question).encode("utf-8", "replace")).digest()[0] % 2 else "tune"


def digest(*texts: str) -> str:
    """The key of the order: hexadecimal SHA-256 of the normalised texts."""
    return hashlib.sha256("\0".join(map(squeezed, texts)).encode("utf-8", "replace")).hexdigest()


def place(count: int, *texts: str) -> int:
    """A number below `count` that is determined by the texts."""
    return int(digest(*texts), 16) % count
