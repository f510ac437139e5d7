"""The sources of a datastore, a line of JSON each; read and checked at the first access."""

from __future__ import annotations

import json

from memograft.request import Source
from memograft.rtd.files import SOURCES, Files, damaged

__all__ = ["Sources"]


class Sources:
    """The sources that were valid at the first access, by number. Deleted ones keep their numbers."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._lines: list[bytes] | None = None

    def __getitem__(self, number: int) -> Source:
        """Raises StoreCorruptError if sources.jsonl is damaged."""
        line = self._read()[number]
        try:
            about = json.loads(line)
            return Source(about["id"], about["text"], about["prompt"], about["metadata"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise damaged(self._files.folder / SOURCES, f"its line {number + 1} is not a source ({error!r})") from error

    def living(self) -> list[tuple[int, Source]]:
        """The sources that were not deleted, with their numbers, in the order in which they were added."""
        deleted = set(self._files.header.deleted)
        return [(number, self[number]) for number in range(len(self._read())) if number not in deleted]

    def _read(self) -> list[bytes]:
        if self._lines is None:
            self._lines = self._files.source_lines()
        return self._lines
