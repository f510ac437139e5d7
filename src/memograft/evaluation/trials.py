"""`Trials`: try settings of FastMem on questions, and score them by their gain over plain answering."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, TypedDict

from tqdm import tqdm

from memograft.evaluation import runner
from memograft.evaluation.cells import Record
from memograft.evaluation.items import Item, sets_of
from memograft.evaluation.methods import METHODS, Method

if TYPE_CHECKING:
    import optuna

    from memograft import Engine, FastMem

__all__ = ["TOLERANCE", "RunOptions", "Trial", "Trials", "score"]

TOLERANCE = 0.01  # loss against plain, as a fraction of its questions, that is not penalised
_PENALTY = 10.0  # factor for losses beyond it, so that gains elsewhere cannot compensate


class RunOptions(TypedDict, total=False):
    """Options of `runner.run`."""

    max_new_tokens: int
    ignore_case: bool
    progress: bool


BySet = Mapping[str, Sequence[Record]]


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        settings: of FastMem, without "auto".
        score: see `score`; on the questions that were asked.
        gains: of each set: its fraction of clean answers minus plain's.
        asked: number of questions, of all sets together.
        state: "complete"; "pruned" if other trials were better after as many questions; "cut" when the time was up.
    """

    settings: FastMem
    score: float
    gains: dict[str, float]
    asked: int
    state: Literal["complete", "pruned", "cut"]


def score(rows: BySet, plain: BySet) -> tuple[float, dict[str, float]]:
    """(the score, the gain of each set) from the records of the first questions of each set, and plain's.

    The gain of a set is its fraction of clean answers (right, ended and not repeating) minus plain's. A summary counts
    with its ROUGE-L if it ended and does not repeat. The score is the mean gain; the part of a gain below -`TOLERANCE`
    counts ten times, so that settings which make the model recite and loop lose.
    """
    gains = {}
    for name, found in rows.items():
        pairs = zip(found, plain[name][: len(found)], strict=True)
        gains[name] = sum(_worth(row) - _worth(other) for row, other in pairs) / len(found)
    judged = [gain - _PENALTY * max(0.0, -gain - TOLERANCE) for gain in gains.values()]
    return round(sum(judged) / len(judged), 6), {name: round(gain, 4) for name, gain in gains.items()}


class Trials:
    """Asks the questions in batches, alternating between sets, and compares with plain's answers."""

    def __init__(
        self, engine: Engine, items: Sequence[Item], folder: Path, options: RunOptions, bar: tqdm[NoReturn]
    ) -> None:
        self._engine, self._folder, self._options, self._bar = engine, folder, options, bar
        by_set, size = [[i for i in items if i.set == name] for name in sets_of(items)], runner.BATCH
        starts = range(0, max(map(len, by_set)), size)
        self._rungs = [[of_set[s : s + size] for of_set in by_set if len(of_set) > s] for s in starts]
        self._plain: dict[str, list[Record]] = defaultdict(list)
        for part in (part for rung in self._rungs for part in rung):
            self._plain[part[0].set] += self._ask(METHODS["plain"], part)

    def attempt(self, drawn: optuna.Trial, settings: FastMem, end: float = math.inf) -> Trial:
        """Ask until all questions are asked, the time is `end`, or other trials were better after as many questions."""
        rows: dict[str, list[Record]] = defaultdict(list)

        def trial(state: Literal["complete", "pruned", "cut"]) -> Trial:
            return Trial(settings, *score(rows, self._plain), sum(map(len, rows.values())), state)

        method = Method(memory=lambda: settings)
        for n, rung in enumerate(self._rungs):
            for part in rung:
                if rows and time.monotonic() >= end:
                    return trial("cut")
                rows[part[0].set] += self._ask(method, part)
            drawn.report(score(rows, self._plain)[0], step=n)
            if rung is not self._rungs[-1] and drawn.should_prune():
                return trial("pruned")
        return trial("complete")

    def _ask(self, method: Method, part: Sequence[Item]) -> list[Record]:
        name = "trial" if method.memory else "plain"
        (records,) = runner.run(self._engine, {name: method}, part, self._folder, **self._options)[name].values()
        self._bar.update(len(part))
        return records


def _worth(row: Record) -> float:
    ended = row["finish_reason"] == "stop" and not row["repeats"]
    return float(row.get("rouge_l", row["right"])) if ended else 0.0
