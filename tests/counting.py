"""A wrapper of the engine that counts questions and can be interrupted."""

from __future__ import annotations

from typing import Any

from memograft import Engine


class Counting:
    """An engine that counts the questions and raises KeyboardInterrupt after `patience` of them."""

    def __init__(self, engine: Engine, patience: int = 10**9) -> None:
        self._engine, self._patience, self.asked = engine, patience, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def answer_batch(self, requests: Any, **options: Any) -> Any:
        if self.asked >= self._patience:
            raise KeyboardInterrupt
        self.asked += len(requests)
        return self._engine.answer_batch(requests, **options)
