"""`tune`: search settings of FastMem that suit a model, with Optuna, on questions that are not reported on.

Only settings that can be "auto" are searched, as these are what a memograft_config.json in the model's folder may set.
With the same seed, the search draws the same trials, and `runner.run` stores their answers. So an interrupted search
continues, and a longer one begins with the results of a shorter one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from memograft.errors import MissingExtraError, SettingsError
from memograft.evaluation.items import Item
from memograft.evaluation.trials import RunOptions, Trial, Trials

if TYPE_CHECKING:
    import optuna

    from memograft import Engine, FastMem

__all__ = ["Tuned", "check", "tune"]

_RATE, _TARGET, _RELEVANCE = (2e-4, 1e-2), (0.03, 2.0), (0.2, 0.7)  # search ranges, extended to the default if needed
_STARTUP = 5  # number of random trials, before results guide the search and pruning begins


@dataclass(frozen=True)
class Tuned:
    """The result of `tune`.

    Attributes:
        trials: in order; the first is the model's default.
        seconds: duration of the search.
    """

    trials: list[Trial]
    seconds: float

    @property
    def best(self) -> list[Trial]:
        """The complete trials, best first, with ties in order. There is always one."""
        return sorted((t for t in self.trials if t.state == "complete"), key=lambda t: -t.score)

    @property
    def settings(self) -> FastMem:
        """The settings of the best trial."""
        return self.best[0].settings


def check(seconds: float, trials: int | None) -> None:
    """Check the arguments before a model is loaded.

    Raises:
        MissingExtraError: Optuna is not installed.
        SettingsError: there is no time, or no trial.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("tuning needs Optuna, which is missing; run pip install 'memograft[tune]'") from error
    if not (math.isfinite(seconds) and seconds > 0):
        raise SettingsError(f"`seconds` must be a positive number, got {seconds!r}; give the search some time")
    if trials is not None and trials < 1:
        raise SettingsError(
            f"`trials` must be at least 1 (the default), got {trials}; leave it out to use all the time"
        )


def tune(
    engine: Engine,
    items: Sequence[Item],
    folder: str | Path,
    *,
    seconds: float,
    trials: int | None = None,
    seed: int = 0,
    max_new_tokens: int = 40,
    ignore_case: bool = False,
    progress: bool = True,
) -> Tuned:
    """Return the settings with the best `score` on these questions, which is at least that of the model's default.

    Args:
        engine: the model; its `defaults` are the first trial.
        items: questions of the tuning split, of any number of sets.
        folder: stores the results, as in `runner.run`.
        seconds: time limit, after which trials are stopped. Plain and the default are asked in any case.
        trials: maximum number of trials, including the default; None: no maximum.
        seed: of the search.
        max_new_tokens: maximum length of an answer.
        ignore_case: whether "paris" counts as "Paris".
        progress: show a bar.

    Raises:
        MissingExtraError: Optuna is not installed.
        SettingsError: there are no questions, no time or no trials.
        UnsupportedModelError: the model does not support a memory.
    """
    check(seconds, trials)
    if not items:
        raise SettingsError("tuning needs questions, got none; pass items of the tuning split")
    import optuna

    began, default = time.monotonic(), engine.defaults
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP),
    )
    first = {"learning_rate": default.learning_rate, "target_kl": default.target_kl, "relevance": default.threshold}
    study.enqueue_trial({n: v for n, v in first.items() if v is not None} | {"stops": default.target_kl is not None})
    found: list[Trial] = []
    total = None if trials is None else len(items) * (trials + 1)
    with tqdm(total=total, unit="q", desc="plain", disable=not progress) as bar:
        options: RunOptions = {"max_new_tokens": max_new_tokens, "ignore_case": ignore_case, "progress": False}
        asking = Trials(engine, items, Path(folder), options, bar)
        while not found or (time.monotonic() - began < seconds and (trials is None or len(found) < trials)):
            drawn = study.ask()
            settings = _settings(drawn, default)
            bar.set_description(f"trial {len(found) + 1}" + (f", best {study.best_value:+.3f}" if found else ""))
            found.append(asking.attempt(drawn, settings, began + seconds) if found else asking.attempt(drawn, default))
            complete = found[-1].state == "complete"
            state = optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED
            study.tell(drawn, found[-1].score if complete else None, state=state)
    return Tuned(found, round(time.monotonic() - began, 2))


def _settings(drawn: optuna.Trial, default: FastMem) -> FastMem:
    """Settings drawn by Optuna, rounded to two digits. If the default judges no documents, that is not searched."""

    def number(name: str, span: tuple[float, float], own: float | None, log: bool) -> float:
        low, high = (min(span[0], own), max(span[1], own)) if own is not None else span
        return float(f"{drawn.suggest_float(name, low, high, log=log):.2g}")

    assert default.learning_rate != "auto"
    assert default.target_kl != "auto"
    rate = number("learning_rate", _RATE, default.learning_rate, log=True)
    stops = drawn.suggest_categorical("stops", [True, False])
    target = number("target_kl", _TARGET, default.target_kl, log=True) if stops else None
    found = replace(default, learning_rate=rate, target_kl=target)
    if default.threshold is None:
        return found
    return replace(found, relevance=number("relevance", _RELEVANCE, default.threshold, log=False))
