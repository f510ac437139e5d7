"""Cache of the passages that match a filter, so that a repeated filter does not read all metadata again.

Passages of a seq never change and seqs are never reused. So results stay valid until passages are deleted, and after
additions only new passages are tested. Thread-safe.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from memograft.passages.db import Database
from memograft.passages.index import IdArray

_MOST = 2**22  # maximum number of seqs in the cache (32 MB), with the filters' own size counted in seqs
_ENTRY = 64  # overhead of an entry, in seqs


class FilterCache:
    """The most recently used filters and the passages that match them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._mutex = threading.Lock()
        # (condition, parameters) -> (deletions seen, highest seq looked at, the seqs)
        self._known: OrderedDict[tuple[str, str], tuple[int, int, IdArray]] = OrderedDict()
        self._size = 0

    def seqs(self, condition: str, parameters: Sequence[Any], deletions: int) -> IdArray:
        """Return the seqs of the passages that meet an SQL condition, in ascending order.

        Args:
            condition: SQL over the columns of a passage.
            parameters: its parameters.
            deletions: a number that changes with every deletion of passages.
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
    """Size of an entry in seqs. A filter by a thousand ids is larger than its result."""
    return len(seqs) + sum(map(len, name)) // 8 + _ENTRY
