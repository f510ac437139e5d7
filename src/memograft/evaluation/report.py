"""The evaluation as an HTML page: the table, further numbers, plots of all intervals, and answers to read.

It is one file without scripts and external resources, made from summary, records and items.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path

from memograft.evaluation.cells import Record
from memograft.evaluation.items import Item, sets_of
from memograft.evaluation.metrics import Numbers, details, main_measure
from memograft.page import template

__all__ = ["SHOWN", "Bar", "Part", "Shown", "page", "write"]

SHOWN = 20  # answers shown per method
_TEXT = 1500  # characters shown of a document
_WIDTH, _EDGE = 200, 10  # width of an interval's plot and its margins, in pixels


@dataclass(frozen=True)
class Bar:
    """A plotted interval: a line from `low` to `high` and a dot at `dot`, in pixels, and the same as text."""

    low: float
    dot: float
    high: float
    said: str


@dataclass(frozen=True)
class Part:
    """One set: a heading row, a row per method, and the intervals by method on one scale.

    `zero` is the position of no difference in pixels, or None if accuracies are plotted; `scale` labels both ends.
    """

    name: str
    n: int
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    bars: Mapping[str, Bar]
    zero: float | None
    scale: tuple[str, str]


@dataclass(frozen=True)
class Shown:
    """One answer for display.

    `right` is None for summaries. `plain` is None if plain was not asked, or is the method itself.
    """

    item: Item
    text: str
    right: bool | None
    plain: str | None
    plain_right: bool | None
    flags: Sequence[str] = field(default=())


def write(
    path: str | Path,
    results: Mapping[str, Mapping[str, Numbers]],
    records: Mapping[str, Mapping[str, Sequence[Record]]],
    items: Sequence[Item],
    about: Mapping[str, object],
) -> None:
    """Write the page atomically. For the arguments see `page`.

    Raises:
        MissingExtraError: jinja2 is not installed.
        SettingsError: it cannot be written.
    """
    template.write(Path(path), page(results, records, items, about))


def page(
    results: Mapping[str, Mapping[str, Numbers]],
    records: Mapping[str, Mapping[str, Sequence[Record]]],
    items: Sequence[Item],
    about: Mapping[str, object],
) -> str:
    """The page as HTML.

    Args:
        results: `metrics.summary` of the records.
        records: of `runner.run`.
        items: the questions of the run.
        about: JSON values about the origin of the numbers. "model" and "questions" form the title; "results" is
            ignored.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    known = {name: value for name, value in about.items() if name not in ("results", "model", "questions")}
    return template.filled(
        "report.html.jinja",
        model=about.get("model", "a model"),
        questions=about.get("questions", "questions"),
        sets=[_part(results, name) for name in sets_of(items)],
        answers={method: list(_shown(method, records, items)) for method in records},
        counts={method: sum(map(len, by_set.values())) for method, by_set in records.items()},
        short={name: value for name, value in known.items() if not isinstance(value, dict | list)},
        long={n: json.dumps(v, indent=1, ensure_ascii=False) for n, v in known.items() if isinstance(v, dict | list)},
        most=SHOWN,
        width=_WIDTH,
        cut=_TEXT,
    )


def _part(results: Mapping[str, Mapping[str, Numbers]], name: str) -> Part:
    cells = {method: by_set[name] for method, by_set in results.items()}
    n = max(cell["n"] for cell in cells.values())
    paired = "plain" in cells
    found = {method: _interval(cell, paired) for method, cell in cells.items() if not (paired and method == "plain")}
    ends = [end for low, _, high in found.values() for end in (low, high)] + ([0.0] if paired else [])
    left, right = min(ends), max(ends)
    right = right if right > left else left + 0.01

    def place(value: float) -> float:
        return round(_EDGE + (_WIDTH - 2 * _EDGE) * (value - left) / (right - left), 1)

    sign = "+" if paired else ""
    bars = {
        method: Bar(place(low), place(dot), place(high), f"{dot:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]")
        for method, (low, dot, high) in found.items()
    }
    heading, *rows = details(results, name)
    scale = (f"{left:{sign}.3f}", f"{right:{sign}.3f}")
    return Part(name, n, heading, rows, bars, place(0.0) if paired else None, scale)


def _interval(cell: Numbers, paired: bool) -> tuple[float, float, float]:
    """(low, middle, high) of the difference to plain, or of the main measure without plain."""
    low, high = cell["minus_plain_interval" if paired else "interval"]
    return low, cell["minus_plain" if paired else main_measure(cell)], high


def _shown(
    method: str, records: Mapping[str, Mapping[str, Sequence[Record]]], items: Sequence[Item]
) -> Iterator[Shown]:
    """A selection of a method's answers, in the order of the questions.

    They are taken in turns from each set, and in each set from: right only for plain, right only here; failed,
    repeating or not ended; and the rest.
    """
    kinds: list[list[int]] = []
    made: list[Shown] = []
    for name, rows in records[method].items():
        asked = [item for item in items if item.set == name]
        plain = records["plain"][name] if "plain" in records and method != "plain" else [None] * len(rows)
        start = len(made)
        made += [_one(item, row, other) for item, row, other in zip(asked, rows, plain, strict=True)]
        here = range(start, len(made))
        kinds += [[n for n in here if _kind(made[n]) == kind] for kind in range(4)]
    turns = (n for n in chain.from_iterable(zip_longest(*kinds)) if n is not None)
    chosen = sorted(n for n, _ in zip(turns, range(SHOWN), strict=False))
    return (made[n] for n in chosen)


def _kind(shown: Shown) -> int:
    for kind, flags in enumerate(({"lost"}, {"won"}, {"failed", "repeats", "unfinished"})):
        if flags & set(shown.flags):
            return kind
    return 3


def _one(item: Item, row: Record, plain: Record | None) -> Shown:
    right, before = _right(row), _right(plain) if plain else None
    flags = {
        "won": plain is not None and right is True and before is False,
        "lost": plain is not None and right is False and before is True,
        "failed": "error" in row,
        "repeats": row["repeats"],
        "unfinished": row["finish_reason"] == "length",
        "not in the form asked for": "error" not in row and not row["formed"],
        "rolled back": row.get("rolled_back", False),
        "nothing memorized": row.get("memorized") == 0,
        f"ROUGE-L {row.get('rouge_l', 0):.2f}": "rouge_l" in row,
        f"recites {row['recites']} words": row["recites"] > 12,
    }
    said = [flag for flag, there in flags.items() if there]
    return Shown(item, _text(row), right, _text(plain) if plain else None, before, said)


def _right(row: Record) -> bool | None:
    return None if "rouge_l" in row else bool(row["right"])


def _text(row: Record) -> str:
    return str(row.get("text", row.get("error", "")))
