"""Which questions the model answers by itself: only there has an irrelevant page something to spoil."""

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

_PART = 128  # questions that are asked before it is counted how many more are needed


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
    """The first `n` items of one set that the model knows, all if None; and how many it was asked that it does not.

    It knows an item if it says, asked without documents, the item's belief, or where there is none one of its answers.
    What it says is kept in `folder` as `runner.run` does.

    Raises:
        SettingsError: there are no items.
    """
    kept: list[Item] = []
    asked = 0
    while asked < len(items) and (n is None or len(kept) < n):
        part = items[asked : asked + _PART]
        believed = [replace(item, answers=(item.belief,)) if item.belief else item for item in part]
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
