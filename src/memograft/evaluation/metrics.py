"""From records to numbers: accuracies with their intervals, differences to other methods, and the table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memograft.errors import SettingsError

__all__ = ["difference", "interval", "says", "summary", "table"]

ROUNDS = 10_000  # of the bootstrap
_MOST = 4_000_000  # draws held in memory at a time

Rows = Sequence[Mapping[str, Any]]


def says(text: str, value: str, ignore_case: bool = False) -> bool:
    """Whether the text holds the value as whole words.

    >>> says("The capital is New Delhi.", "New Delhi"), says("Mayan", "May"), says("paris", "Paris", ignore_case=True)
    (True, False, True)
    """
    flags = re.IGNORECASE if ignore_case else 0
    return bool(value) and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, flags) is not None


def interval(values: NDArray[np.float64]) -> list[float]:
    """The 95% bootstrap interval [low, high] of the mean of values (n,); drawn from seed 0."""
    rng = np.random.default_rng(0)
    means: list[NDArray[np.float64]] = []
    size = max(1, _MOST // len(values))
    for start in range(0, ROUNDS, size):
        picks = rng.integers(0, len(values), (min(size, ROUNDS - start), len(values)))
        means.append(values[picks].mean(axis=1))
    return [round(float(q), 4) for q in np.quantile(np.concatenate(means), (0.025, 0.975))]


def difference(rows: Rows, others: Rows) -> dict[str, Any]:
    """Accuracy of `rows` minus that of `others` on the same questions, with the interval of the paired difference.

    Raises:
        SettingsError: they are not about the same questions.
    """
    if [row["id"] for row in rows] != [row["id"] for row in others]:
        raise SettingsError(
            f"a paired difference needs the same questions in the same order, got {len(rows)} and {len(others)} that "
            "differ; run both methods on the same file"
        )
    change = _right(rows) - _right(others)
    return {"difference": round(float(change.mean()), 4), "interval": interval(change)}


def summary(records: Mapping[str, Mapping[str, Rows]], against: Sequence[str] = ()) -> dict[str, Any]:
    """method -> set -> its numbers, as JSON values.

    Every cell has `n`, `accuracy` and its `interval`, the shares `belief` and `other`, `failed` and `seconds`; the
    paired difference to plain, if plain is there, as `minus_plain` and `minus_plain_interval`; the same to each method
    of `against` under `minus`; means of the memory's numbers, and the accuracy by kind, where records have them.
    """
    return {
        method: {
            name: _cell(rows)
            | (_minus_plain(rows, records["plain"][name]) if "plain" in records else {})
            | ({"minus": {o: difference(rows, records[o][name]) for o in against if o != method}} if against else {})
            for name, rows in by_set.items()
        }
        for method, by_set in records.items()
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The summary in Markdown: accuracy, and in brackets the difference to plain with its interval."""
    sets = list(next(iter(results.values())))
    lines = ["| method | " + " | ".join(sets) + " |", "|---|" + "---|" * len(sets)]
    for method, by_set in results.items():
        cells = []
        for cell in by_set.values():
            change = ""
            if method != "plain" and "minus_plain" in cell:
                low, high = cell["minus_plain_interval"]
                change = f" ({cell['minus_plain']:+.3f} [{low:+.3f}, {high:+.3f}])"
            cells.append(f"{cell['accuracy']:.3f}{change}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _right(rows: Rows) -> NDArray[np.float64]:
    return np.array([row["right"] for row in rows], dtype=np.float64)


def _minus_plain(rows: Rows, plain: Rows) -> dict[str, Any]:
    found = difference(rows, plain)
    return {"minus_plain": found["difference"], "minus_plain_interval": found["interval"]}


def _cell(rows: Rows) -> dict[str, Any]:
    cell: dict[str, Any] = {
        "n": len(rows),
        "accuracy": _mean(row["right"] for row in rows),
        "interval": interval(_right(rows)),
        "belief": _mean(row["belief"] for row in rows),
        "other": _mean(row["other"] for row in rows),
        "failed": sum("error" in row for row in rows),
        "seconds": round(sum(row["seconds"] for row in rows), 2),
    }
    remembered = [row for row in rows if "kl" in row]
    if remembered:
        for name in ("loss_before", "loss_after", "kl"):
            cell[f"mean_{name}"] = _mean(row[name] for row in remembered if row[name] is not None)
        cell["mean_steps"] = _mean(row["steps"] for row in remembered)
        cell["mean_memorized"] = _mean(row["memorized"] for row in remembered)
        cell["disagree"] = _mean(row["disagree"] for row in remembered)
        cell["rolled_back"] = sum(row["rolled_back"] for row in remembered)
    for kind in sorted({row["kind"] for row in rows} - {""}):
        cell[f"accuracy_{kind}"] = _mean(row["right"] for row in rows if row["kind"] == kind)
    return cell


def _mean(values: Any) -> float | None:
    found = [float(value) for value in values]
    return round(sum(found) / len(found), 4) if found else None
