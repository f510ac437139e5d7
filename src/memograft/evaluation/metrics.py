"""Compute results from records: accuracies with intervals, differences to other methods, and tables."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memograft.errors import SettingsError
from memograft.evaluation.cells import Measure, Record
from memograft.evaluation.scores import normalised, says

__all__ = ["details", "difference", "groups", "interval", "main_measure", "says_again", "summary", "table"]

ROUNDS = 10_000  # bootstrap rounds
_MOST = 4_000_000  # draws in memory at a time

Rows = Sequence[Record]
Numbers = dict[str, Any]  # JSON values of a method on a set; see `summary`


def interval(values: NDArray[np.float64], groups: Sequence[Hashable] | None = None) -> list[float]:
    """The 95% bootstrap interval [low, high] of the mean of values (n,), with seed 0.

    `groups` names the group of each value (n,). Whole groups are drawn, because values of one group are not
    independent. None is the plain bootstrap, in which each value is a group.
    """
    codes: dict[Hashable, int] = {}
    of_value = [codes.setdefault(group, len(codes)) for group in (range(len(values)) if groups is None else groups)]
    sums, sizes = np.bincount(of_value, values), np.bincount(of_value)
    rng = np.random.default_rng(0)
    means: list[NDArray[np.float64]] = []
    size = max(1, _MOST // len(sums))
    for start in range(0, ROUNDS, size):
        picks = rng.integers(0, len(sums), (min(size, ROUNDS - start), len(sums)))
        means.append(sums[picks].sum(axis=1) / sizes[picks].sum(axis=1))
    return [round(float(q), 4) for q in np.quantile(np.concatenate(means), (0.025, 0.975))]


def difference(rows: Rows, others: Rows, measure: Measure = "right") -> Numbers:
    """Mean of `measure` in `rows` minus that in `others` for the same questions, with the paired difference's interval.

    Raises:
        SettingsError: the questions differ.
    """
    if [row["id"] for row in rows] != [row["id"] for row in others]:
        raise SettingsError(
            f"a paired difference needs the same questions in the same order, got {len(rows)} and {len(others)} that "
            "differ; run both methods on the same file"
        )
    change = _values(rows, measure) - _values(others, measure)
    return {"difference": round(float(change.mean()), 4), "interval": interval(change, groups(rows))}


def main_measure(cell: Numbers) -> str:
    """The main measure of a cell: "rouge_l" for summaries, else "accuracy"."""
    return "rouge_l" if "rouge_l" in cell else "accuracy"


def summary(records: Mapping[str, Mapping[str, Rows]], against: Sequence[str] = ()) -> dict[str, dict[str, Numbers]]:
    """method -> set -> its numbers, as JSON values.

    Every cell has:
    - `n`; `accuracy` (fraction of `right`) or, for summaries, `rouge_l` (mean), with its `interval`;
    - `clean` (right, ended and not repeating), `hit` (as in FastMem's paper), `em` and `f1`, except for summaries;
    - `malformed`, `unfinished` and `repeating` (fractions), `new_tokens` and `recited` words (means), `failed`,
      `seconds`, and `timings` (mean seconds of a batch);
    - `belief` and `other` (fractions), and `memorization_ratio`: of the answers with either the belief or a
      right answer, the fraction with the belief;
    - means of the memory's numbers, `skipped` (nothing was memorized) and `rolled_back` (counts), and the accuracy by
      kind, if records have them.
    If "plain" was run: the paired difference to it as `minus_plain` and `minus_plain_interval` (for `clean` as
    `clean_minus_plain` and its interval), `won` and `lost` (right only here, right only there), and `kept_of_plain`,
    the fraction of plain's right answers that are right here. If "no document" was run: `belief_kept`, the fraction of
    its wrong answers that are repeated here. With `against`: the paired difference to each of these under `minus`.
    """
    plain, closed = records.get("plain"), records.get("no document")
    return {
        method: {
            name: _cell(rows)
            | (_beliefs(rows, closed[name]) if closed else {})
            | (_to_plain(rows, plain[name]) if plain else {})
            | (_minus(rows, {o: records[o][name] for o in against if o != method}) if against else {})
            for name, rows in by_set.items()
        }
        for method, by_set in records.items()
    }


def table(results: Mapping[str, Mapping[str, Numbers]], clean: bool = False) -> str:
    """The summary in Markdown: accuracy or ROUGE-L, and in brackets the difference to plain with its interval.

    With `clean`, the fraction of clean answers replaces accuracy.
    """
    sets = list(next(iter(results.values())))
    lines = ["| method | " + " | ".join(sets) + " |", "|---|" + "---|" * len(sets)]
    for method, by_set in results.items():
        cells = []
        for cell in by_set.values():
            change, as_clean = "", clean and "clean" in cell
            minus = "clean_minus_plain" if as_clean else "minus_plain"
            if method != "plain" and minus in cell:
                low, high = cell[f"{minus}_interval"]
                change = f" ({cell[minus]:+.3f} [{low:+.3f}, {high:+.3f}])"
            cells.append(f"{cell['clean' if as_clean else main_measure(cell)]:.3f}{change}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


_DETAILS = {
    "accuracy": ".3f", "clean": ".3f", "hit": ".3f", "em": ".3f", "f1": ".3f", "rouge_l": ".3f", "won": "d",
    "lost": "d", "belief_kept": ".3f", "memorization_ratio": ".3f", "malformed": ".3f", "unfinished": ".3f",
    "repeating": ".3f", "new_tokens": ".1f", "skipped": "d", "rolled_back": "d", "failed": "d", "seconds": ".1f",
}  # fmt: skip


def details(results: Mapping[str, Mapping[str, Numbers]], name: str) -> list[list[str]]:
    """Further numbers of one set: a heading row, then one row per method; "" for missing values."""
    cells = {method: by_set[name] for method, by_set in results.items()}
    columns = [c for c in _DETAILS if any(cell.get(c) is not None for cell in cells.values())]
    rows = [
        [method, *("" if cell.get(c) is None else format(cell[c], _DETAILS[c]) for c in columns)]
        for method, cell in cells.items()
    ]
    return [["method", *(c.replace("_", " ") for c in columns)], *rows]


def _cell(rows: Rows) -> Numbers:
    main = _measure(rows)
    values = _values(rows, main)
    cell: Numbers = {
        "n": len(rows),
        "accuracy" if main == "right" else main: _mean(values),
        "interval": interval(values, groups(rows)),
    }
    if main == "right":
        cell |= {name: _mean(row[name] for row in rows) for name in _SHARES}
    cell |= {
        "malformed": _mean("error" not in row and not row["formed"] for row in rows),
        "unfinished": _mean(row["finish_reason"] == "length" for row in rows),
        "repeating": _mean(row["repeats"] for row in rows),
        "new_tokens": _mean(row["new_tokens"] for row in rows),
        "recited": _mean(row["recites"] for row in rows),
        "belief": _mean(row["belief"] for row in rows),
        "other": _mean(row["other"] for row in rows),
        "memorization_ratio": _mean(row["belief"] for row in rows if row["belief"] != row["right"]),
        "failed": sum("error" in row for row in rows),
        "seconds": round(sum(row["seconds"] for row in rows), 2),
    }
    timed = [row["timings"] for row in rows if "timings" in row]
    cell["timings"] = {part: _mean(times[part] for times in timed) for part in ("prefill", "memorize", "decode")}
    for kind in sorted({row["kind"] for row in rows} - {""}):
        cell[f"accuracy_{kind}"] = _mean(row["right"] for row in rows if row["kind"] == kind)
    return cell | _memory([row for row in rows if "kl" in row])


def _memory(rows: Rows) -> Numbers:
    """Numbers of the records that have a memory."""
    if not rows:
        return {}
    return {
        **{f"mean_{name}": _mean(v for row in rows if (v := row[name]) is not None) for name in _LOSSES},
        "mean_steps": _mean(row["steps"] for row in rows),
        "mean_memorized": _mean(row["memorized"] for row in rows),
        "disagree": _mean(row["disagree"] for row in rows),
        "skipped": sum(row["memorized"] == 0 for row in rows),
        "rolled_back": sum(row["rolled_back"] for row in rows),
    }


_SHARES: tuple[Measure, ...] = ("clean", "hit", "em", "f1")
_LOSSES: tuple[Literal["loss_before", "loss_after", "kl"], ...] = ("loss_before", "loss_after", "kl")


def _to_plain(rows: Rows, plain: Rows) -> Numbers:
    main = _measure(rows)
    found = difference(rows, plain, main)
    numbers = {"minus_plain": found["difference"], "minus_plain_interval": found["interval"]}
    if main != "right":
        return numbers
    clean = difference(rows, plain, "clean")
    pairs = [(row["right"], other["right"]) for row, other in zip(rows, plain, strict=True)]
    return numbers | {
        "clean_minus_plain": clean["difference"],
        "clean_minus_plain_interval": clean["interval"],
        "won": sum(here and not there for here, there in pairs),
        "lost": sum(there and not here for here, there in pairs),
        "kept_of_plain": _mean(here for here, there in pairs if there),
    }


def _beliefs(rows: Rows, closed: Rows) -> Numbers:
    """Of the questions that the model answers wrong without documents: how often it repeats that answer here."""
    return {"belief_kept": _mean(says_again(row, c) for row, c in zip(rows, closed, strict=True) if not c["right"])}


def says_again(row: Record, closed: Record) -> bool:
    """Whether an answer says what the one without documents said.

    By a right answer or the item's belief if that one contains it, else by its words, normalised.
    """
    if closed["right"] or closed["belief"]:
        return bool(row["right"] and closed["right"]) or bool(row["belief"] and closed["belief"])
    return says(normalised(_text(row)), normalised(_text(closed)))


def _minus(rows: Rows, others: Mapping[str, Rows]) -> Numbers:
    return {"minus": {name: difference(rows, other, _measure(rows)) for name, other in others.items()}}


def _measure(rows: Rows) -> Measure:
    return "rouge_l" if "rouge_l" in rows[0] else "right"


def _values(rows: Rows, measure: Measure) -> NDArray[np.float64]:
    return np.array([row[measure] for row in rows], dtype=np.float64)


def groups(rows: Rows) -> list[Hashable]:
    """The group of each record. Records without a group have one of their own."""
    return [row.get("group") or n for n, row in enumerate(rows)]


def _text(row: Record) -> str:
    return str(row.get("text", ""))


def _mean(values: Iterable[float]) -> float | None:
    found = [float(value) for value in values]
    return round(sum(found) / len(found), 4) if found else None
