"""Remembers which passages met a filter, so that a filter that comes again costs no pass over the metadata.

A seq is never used twice and a passage under one never changes, so what is remembered stays true until passages are
deleted, and after additions only the new ones are looked at. Any number of threads may call it. Knows nothing of FAISS.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from memograft.passages.db import Database
from memograft.passages.index import IdArray

_MOST = 2**22  # seqs remembered, of all filters together: 32 MB; the filters themselves count by their length
_ENTRY = 64  # seqs that the rest of an entry takes the room of


class FilterCache:
    """The filters used last and the passages they let through."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._mutex = threading.Lock()
        # (condition, parameters) -> (deletions seen, highest seq looked at, the seqs)
        self._known: OrderedDict[tuple[str, str], tuple[int, int, IdArray]] = OrderedDict()
        self._size = 0

    def seqs(self, condition: str, parameters: Sequence[Any], deletions: int) -> IdArray:
        """Return the seqs of the passages that meet an SQL condition, ascending.

        Args:
            condition: SQL over the columns of a passage.
            parameters: its parameters.
            deletions: a number that has changed if any passage was deleted since the last call.
        """
        name = (condition, repr(parameters))
        with self._mutex:
            known = self._known.get(name)
        if known is None or known[0] != deletions:
            known = (deletions, 0, np.zeros(0, np.int64))
        _, after, seqs = known
        ((last,),) = self._database.rows("SELECT coalesce(max(seq), 0) FROM passages")
        if last > after:
            new = self._database.seqs(f"seq > ? AND seq <= ? AND ({condition})", [after, last, *parameters])
            seqs = np.concatenate([seqs, new])
        with self._mutex:
            self._forget(name)
            self._known[name] = (deletions, max(last, after), seqs)
            self._size += _size(name, seqs)
            while len(self._known) > 1 and self._size > _MOST:
                self._forget(next(iter(self._known)))
        return seqs

    def _forget(self, name: tuple[str, str]) -> None:
        if known := self._known.pop(name, None):
            self._size -= _size(name, known[2])


def _size(name: tuple[str, str], seqs: IdArray) -> int:
    """Room that an entry takes, in seqs: a filter by a thousand ids is longer than what it lets through."""
    return len(seqs) + sum(map(len, name)) // 8 + _ENTRY
