"""`answer_cells`: the questions of an evaluation, by workers. A cell is one method on one set of questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from memograft.cluster.pool import Batch, Pool, there
from memograft.engine import Engine
from memograft.evaluation.items import Item, sets_of
from memograft.evaluation.methods import Method
from memograft.evaluation.runner import run

__all__ = ["answer_cells"]


def answer_cells(
    pool: Pool,
    model: str,
    methods: Mapping[str, Method],
    items: Sequence[Item],
    folder: str | Path,
    *,
    examples: Sequence[Item] = (),
    max_new_tokens: int = 40,
    ignore_case: bool = False,
    progress: bool = True,
) -> None:
    """Let workers answer all cells into the folder; `evaluation.runner.run` then finds them there.

    A worker has a cell at a time and asks it in the same batches as `run`, so the answers are the same. A cell whose
    worker died is continued by another one.

    Args:
        pool: the workers; more of them than cells have nothing to do.
        model: what each worker loads, as `Engine.from_pretrained` takes it.
        methods: see `run`, as all that follow.
        items: the questions.
        folder: stores the results; all workers must see it under its path.
        examples: worked examples.
        max_new_tokens: maximum length of an answer.
        ignore_case: whether "paris" counts as "Paris".
        progress: whether to show a bar, of cells.

    Raises:
        MemograftError: a worker failed, with its reason.
        MissingExtraError: Ray is not installed.
    """
    asked = {
        "methods": dict(methods),
        "items": list(items),
        "folder": str(Path(folder).resolve()),
        "examples": list(examples),
        "max_new_tokens": max_new_tokens,
        "ignore_case": ignore_case,
    }
    rows = [{"method": method, "set": name} for method in methods for name in sets_of(items)]
    with tqdm(total=len(rows), desc="cells", unit="", disable=not progress) as bar:
        for _ in pool.results(_Asker, {"model": there(model), "asked": asked}, rows, 1):
            bar.update()


class _Asker:
    """A worker that answers cells."""

    def __init__(self, model: str, asked: Mapping[str, object]) -> None:
        self._engine, self._asked = Engine.from_pretrained(model), asked

    def __call__(self, batch: Batch) -> Batch:
        cells = [(str(method), str(name)) for method, name in zip(batch["method"], batch["set"], strict=True)]
        run(self._engine, cells=cells, progress=False, **self._asked)  # type: ignore[arg-type]
        return batch
