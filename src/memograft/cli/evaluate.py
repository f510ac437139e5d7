"""`memograft eval`: from the command's words to the runner's arguments, and its records to one JSON object."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memograft.cli.console import err, warn
from memograft.cli.models import load_engine
from memograft.errors import SettingsError
from memograft.evaluation import plots
from memograft.evaluation.items import Item, read_items, sets_of, world
from memograft.evaluation.methods import METHODS, Method, from_settings


def evaluate(
    questions: str,
    *,
    model: str,
    split: str,
    n: int | None,
    names: Sequence[str],
    settings: Sequence[str],
    sets: Sequence[str],
    against: Sequence[str],
    folder: Path,
    plot: Path | None,
    max_new_tokens: int,
) -> tuple[dict[str, Any], str]:
    """(JSON values of the results and of where they come from, the table in Markdown)."""
    own = questions != "world"
    items = _of_sets(read_items(questions, n) if own else world(split, n), sets)
    methods = _methods(names, settings)
    against = against or [name for name in ("plain, restricted",) if name in methods]
    for name in against:
        if name not in methods:
            raise SettingsError(f"`--against` must be one of {list(methods)}, got {name!r}; add it with `--method`")
    if plot:
        plots.check(methods, sets_of(items), plot)
    from memograft import FastMem
    from memograft.evaluation.metrics import summary, table
    from memograft.evaluation.provenance import provenance
    from memograft.evaluation.runner import run

    began = time.perf_counter()
    with load_engine(model) as engine:
        records = run(engine, methods, items, folder, max_new_tokens=max_new_tokens, ignore_case=own)
        about = {"fingerprint": engine.fingerprint, **provenance(engine.model.device)}
    results = summary(records, against)
    _warn_of_failures(records)
    label = Path(model).name if Path(model).exists() else model
    asked = Path(questions).name if own else f"world, {split}"
    count = max(cell["n"] for by_set in results.values() for cell in by_set.values())
    if plot:
        ours = [*settings, *(name for name in methods if name.startswith("memorized"))]
        title = f"What memorizing gains and costs: {label}, {asked}, n = {count}"
        plots.draw(plots.dots(results, ours), plot, title, [name for name in plots.COSTS if name in sets_of(items)])
        err().print(f"picture: {plot}", markup=False, soft_wrap=True)
    rows = [row for by_set in records.values() for cell in by_set.values() for row in cell]
    return {
        "benchmark": "eval",
        "model": label,
        "questions": asked,
        "n": count,
        "results": results,
        "settings": {name: method.settings() for name, method in methods.items()},
        "default": asdict(FastMem()),
        "max_new_tokens": max_new_tokens,
        "commits_of_the_answers": sorted({row["commit"] for row in rows}),
        **about,
        "seconds": round(time.perf_counter() - began, 2),
    }, table(results)


def _methods(names: Sequence[str], settings: Sequence[str]) -> dict[str, Method]:
    """The methods asked for, "plain" before all others since they are compared with it."""
    for name in names:
        if name not in METHODS:
            raise SettingsError(f"`--method` must be one of {list(METHODS)}, got {name!r}; check the name")
    chosen = list(METHODS) if not names and not settings else ["plain", *(n for n in names if n != "plain")]
    return {name: METHODS[name] for name in chosen} | {text: from_settings(text) for text in settings}


def _of_sets(items: Sequence[Item], sets: Sequence[str]) -> list[Item]:
    known = sets_of(items)
    for name in sets:
        if name not in known:
            raise SettingsError(f"`--sets` must be one of {known}, got {name!r}; check the name")
    return [item for item in items if not sets or item.set in sets]


def _warn_of_failures(records: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> None:
    for method, by_set in records.items():
        for name, rows in by_set.items():
            failed = [row["error"] for row in rows if "error" in row]
            if failed:
                warn(
                    f"{method}: {name}: {len(failed)} of {len(rows)} failed and count as wrong; the first: {failed[0]}"
                )
