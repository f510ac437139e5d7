"""`KeptAnswers`: answers of earlier runs, in an SQLite file.

The harness's own `--use_cache` finds an answer by the prompt alone. Here, documents and memory are part of the key.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from lm_eval.api.model import hash_args

__all__ = ["KeptAnswers"]


class KeptAnswers:
    """A table from keys to answers, which are JSON values.

    Args:
        path: the file; created if it does not exist.
        about: JSON values of everything that determines all answers: the model, the memory, the versions.
    """

    def __init__(self, path: str | Path, about: object) -> None:
        self._about = about
        self._db = sqlite3.connect(path)
        self._db.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")

    def key(self, kind: str, arguments: tuple[object, ...], documents: list[str], query: str | None) -> str:
        """The key of a request: the harness's hash of its arguments, documents, query and `about`."""
        return str(hash_args(kind, [*arguments, documents, query, self._about]))

    def get(self, key: str) -> object:
        """The answer with this key; None if there is none."""
        found = self._db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if found is None else json.loads(found[0])

    def put(self, answers: list[tuple[str, object]]) -> None:
        """Store (key, answer) pairs durably."""
        rows = [(key, json.dumps(answer)) for key, answer in answers]
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        self._db.close()
