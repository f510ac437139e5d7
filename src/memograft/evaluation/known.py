"""Find the questions that the model answers without documents: only those can show harm from an irrelevant page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from memograft.evaluation.items import Item
from memograft.evaluation.methods import METHODS
from memograft.evaluation.runner import run

if TYPE_CHECKING:
    from memograft import Engine

__all__ = ["known"]

_PART = 128  # questions per round


def known(
    engine: Engine,
    items: Sequence[Item],
    n: int | None,
    folder: str | Path,
    *,
    max_new_tokens: int = 40,
    ignore_case: bool = False,
    progress: bool = True,
) -> tuple[list[Item], int]:
    """Return the first `n` (or all) known items of one set, and how many unknown items were asked.

    The model knows an item if its answer without documents contains one of the item's answers; or the item's belief, if
    the documents contradict that. Answers are stored in `folder` as by `runner.run`.

    Raises:
        SettingsError: there are no items.
    """
    kept: list[Item] = []
    asked = 0
    while asked < len(items) and (n is None or len(kept) < n):
        part = items[asked : asked + _PART]
        believed = [
            item if item.belief in ("", *item.answers) else replace(item, answers=(item.belief,)) for item in part
        ]
        records = run(
            engine,
            {"no document": METHODS["no document"]},
            believed,
            folder,
            max_new_tokens=max_new_tokens,
            ignore_case=ignore_case,
            progress=progress,
        )["no document"][part[0].set]
        for item, record in zip(part, records, strict=True):
            if n is not None and len(kept) == n:
                break
            asked += 1
            if record["right"]:
                kept.append(item)
    return kept, asked - len(kept)
