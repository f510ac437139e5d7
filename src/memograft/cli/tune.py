"""`memograft tune`: run the search, report on the test split, and write the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from memograft.cli.console import err
from memograft.cli.evaluate import WORLD, Questions, label_of, tell_skipped, warn_of_failures
from memograft.cli.models import load_engine
from memograft.evaluation.methods import METHODS, Method
from memograft.evaluation.protocol import protocol_of

if TYPE_CHECKING:
    from memograft.evaluation.metrics import Numbers
    from memograft.evaluation.trials import RunOptions, Trial
    from memograft.evaluation.tuning import Tuned

_SHOWN = 5  # number of best trials in the table
_REPORTED = (
    "n", "accuracy", "rouge_l", "interval", "minus_plain", "minus_plain_interval", "clean", "clean_minus_plain",
    "clean_minus_plain_interval",
)  # fmt: skip


def tune(
    path: str,
    *,
    model: str,
    format: str | None,
    contexts: Sequence[str],
    n: int,
    protocol: str,
    sets: Sequence[str],
    minutes: float,
    trials: int | None,
    seed: int,
    folder: Path,
    file: Path,
    max_new_tokens: int | None,
) -> tuple[dict[str, object], str]:
    """(JSON values of the search and its report, the tables in Markdown). The settings are written to `file`."""
    asked = Questions(
        path, format=format, contexts=contexts, split="tune", n=n, protocol=protocol, every_swap=False, sets=sets,
        only_known=(),
    )  # fmt: skip
    tuning, test = asked.read(), replace(asked, split="test").read()
    way = protocol_of(protocol)
    options: RunOptions = {
        "max_new_tokens": max_new_tokens or max(way.max_new_tokens(i.task) for i in (*tuning.items, *test.items)),
        "ignore_case": tuning.format != WORLD,
    }
    from memograft.evaluation import tuning as search
    from memograft.evaluation.metrics import summary, table
    from memograft.evaluation.provenance import provenance
    from memograft.evaluation.runner import run

    search.check(minutes * 60, trials)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file.parent.mkdir(parents=True, exist_ok=True)
    tell_skipped(tuning.skipped)
    with load_engine(model) as engine:
        found = search.tune(engine, tuning.items, folder, seconds=minutes * 60, trials=trials, seed=seed, **options)
        default, tuned = engine.defaults, found.settings
        methods = {"plain": METHODS["plain"], "default": Method(memory=lambda: default)}
        if tuned != default:
            methods["tuned"] = Method(memory=lambda: tuned)
        records = run(engine, methods, test.items, folder, **options)
        records.setdefault("tuned", records["default"])  # the same settings give the same answers
        about = {"fingerprint": engine.fingerprint, **provenance(engine.model.device)}
    warn_of_failures(records)
    results = summary(records, ["default"])
    scores = {"default": found.trials[0].score, "tuned": found.best[0].score}
    made = {
        "model": label_of(model),
        "questions": asked.name(tuning).removesuffix(f", {tuning.split}"),
        "protocol": protocol,
        "n": n,
        "trials": len(found.trials),
        "seconds": found.seconds,
        "seed": seed,
        "score_on_the_tuning_split": scores,
        **options,
        **about,
    }
    date = datetime.now(UTC).date().isoformat()
    written = tuned.save(file, {"by": "memograft tune", "date": date, **made, "test": _reported(results)})
    err().print(f"settings: {written}", markup=False, soft_wrap=True)
    told = {
        "benchmark": "tune",
        **made,
        "settings": asdict(tuned),
        "default": asdict(default),
        "tried": [_trial(trial) for trial in found.trials],
        "results": results,
        "file": str(written),
    }
    tables = [_tried(found), f"Test split, right:\n\n{table(results)}"]
    return told, "\n\n".join([*tables, f"Test split, right, ended and not repeating:\n\n{table(results, clean=True)}"])


def _reported(results: Mapping[str, Mapping[str, Numbers]]) -> dict[str, object]:
    """The results on the test split for the file of settings."""
    return {
        method: {name: {key: cell[key] for key in _REPORTED if key in cell} for name, cell in by_set.items()}
        for method, by_set in results.items()
    }


def _trial(trial: Trial) -> dict[str, object]:
    shown = {name: getattr(trial.settings, name) for name in ("learning_rate", "target_kl", "relevance")}
    return {**shown, "score": trial.score, "gains": trial.gains, "asked": trial.asked, "state": trial.state}


def _tried(found: Tuned) -> str:
    """The best trials and the default in Markdown, with the gain over plain for each set."""
    default, best = found.trials[0], found.best[:_SHOWN]
    shown = best if default in best else [*best, default]
    sets = list(default.gains)
    lines = [f"| trial | learning_rate | target_kl | relevance | score | {' | '.join(sets)} |"]
    lines += ["|---|" + "---|" * (4 + len(sets))]
    for trial in shown:
        name = "default" if trial is default else str(found.trials.index(trial) + 1)
        said = ["none" if v is None else f"{v:.2g}" for v in list(_trial(trial).values())[:3]]
        lines.append(f"| {' | '.join([name, *said, *(f'{g:+.3f}' for g in (trial.score, *trial.gains.values()))])} |")
    states = [trial.state for trial in found.trials]
    count = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return f"Tuning split, {len(states)} trials ({count}); gains over plain:\n\n" + "\n".join(lines)
