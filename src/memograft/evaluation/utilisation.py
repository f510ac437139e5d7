"""Context utilisation: whether answers follow the pages that they should follow, and ignore those that they should not.

As in CUB (arXiv 2505.16518), each method answers with three kinds of pages:

    gold         the question's own page                            the answer should be the page's    "agrees"
    conflicting  the page with another answer in it                 the answer should be the page's    "contradicts"
    irrelevant   a page about something else      the answer should be the one given without a page    "irrelevant",
                                                                                                       "elsewhere"

CUB's BCU is the share of predictions that are as they should be. It compares first tokens. Here whole answers are
compared, because chat models answer in sentences: an answer follows a page if it contains the page's answer. It is the
one given without a page if it contains the same right answer or belief or, if that one had neither, its words. CUB's
CCU, the change of a first token's probability, is not computed, because the first token of a sentence says nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain

import numpy as np

from memograft.errors import SettingsError
from memograft.evaluation.cells import Record
from memograft.evaluation.metrics import Numbers, difference, groups, interval, says_again

__all__ = ["CONTEXTS", "check", "table", "utilisation"]

CONTEXTS: Mapping[str, tuple[str, ...]] = {  # context -> the sets that it may be
    "gold": ("agrees",),
    "conflicting": ("contradicts",),
    "irrelevant": ("irrelevant", "elsewhere"),
}
_CLOSED = "no document"
ByContext = Mapping[str, Sequence[Record]]


def check(sets: Collection[str]) -> None:
    """Check before a run that these sets have the three contexts.

    Raises:
        SettingsError: a context has no set, or two.
    """
    for context, names in CONTEXTS.items():
        if len(set(names) & set(sets)) != 1:
            raise SettingsError(
                f"the three contexts of CUB need the sets {CONTEXTS}, one each, got for {context!r} "
                f"{sorted(set(names) & set(sets))} of {list(sets)}; ask them with --context (of a public set) or --sets"
            )


def utilisation(records: Mapping[str, Mapping[str, Sequence[Record]]]) -> dict[str, dict[str, Numbers]]:
    """method -> context, or "total" -> its numbers, as JSON values. "plain" and "no document" are required.

    - `n`, `share` of the answers that are as they should be, with its `interval`;
    - `minus_plain` and `minus_plain_interval`: the paired difference of this share to plain's;
    - `right_by_plain`: how many questions plain answers right with the same page; `no_worse`: the share of these that
      are right here too, with `no_worse_interval`. None without such questions;
    - `unfinished` and `repeating` (shares); `skipped` (nothing was memorized), `rolled_back` and `failed` (counts).

    Intervals are 95% bootstraps, in which all answers to a question are drawn together.
    """
    sets = {context: next(n for n in names if n in records["plain"]) for context, names in CONTEXTS.items()}
    closed = records[_CLOSED][sets["irrelevant"]]
    parts = {
        method: _parts({context: by_set[name] for context, name in sets.items()}, closed)
        for method, by_set in records.items()
        if method != _CLOSED
    }
    plain, plain_used = parts["plain"]
    return {
        method: {
            context: _share(used[context], plain_used[context])
            | _no_worse(rows[context], plain[context])
            | _beside(rows[context])
            for context in rows
        }
        for method, (rows, used) in parts.items()
    }


def _parts(rows: ByContext, closed: Sequence[Record]) -> tuple[ByContext, ByContext]:
    """The records with a "total", and the same with `right` meaning that the answer is as it should be."""
    kept: list[Record] = [
        {**row, "right": says_again(row, alone)} for row, alone in zip(rows["irrelevant"], closed, strict=True)
    ]
    used = {**rows, "irrelevant": kept}
    return _with_total(rows), _with_total(used)


def _with_total(rows: ByContext) -> ByContext:
    return {**rows, "total": list(chain.from_iterable(rows.values()))}


def _share(used: Sequence[Record], plain: Sequence[Record]) -> Numbers:
    values, found = np.array([row["right"] for row in used], dtype=np.float64), difference(used, plain)
    return {
        "n": len(used),
        "share": round(float(values.mean()), 4),
        "interval": interval(values, groups(used)),
        "minus_plain": found["difference"],
        "minus_plain_interval": found["interval"],
    }


def _no_worse(rows: Sequence[Record], plain: Sequence[Record]) -> Numbers:
    here = [row for row, other in zip(rows, plain, strict=True) if other["right"]]
    values = np.array([row["right"] for row in here], dtype=np.float64)
    return {
        "right_by_plain": len(here),
        "no_worse": round(float(values.mean()), 4) if here else None,
        "no_worse_interval": interval(values, groups(here)) if here else None,
    }


def _beside(rows: Sequence[Record]) -> Numbers:
    return {
        "unfinished": round(float(np.mean([row["finish_reason"] == "length" for row in rows])), 4),
        "repeating": round(float(np.mean([row["repeats"] for row in rows])), 4),
        "skipped": sum(row.get("memorized") == 0 for row in rows),
        "rolled_back": sum(row.get("rolled_back", False) for row in rows),
        "failed": sum("error" in row for row in rows),
    }


def table(found: Mapping[str, Mapping[str, Numbers]]) -> str:
    """The numbers in Markdown, a line for each method and context."""
    columns = ("as it should be", "minus plain", "no worse than plain", "unfinished", "repeating", "skipped", "failed")
    lines = [f"| method | context | n | {' | '.join(columns)} |", "|---" * (len(columns) + 3) + "|"]
    for method, by_context in found.items():
        for context, cell in by_context.items():
            minus = "" if method == "plain" else _spanned(cell, "minus_plain", "+")
            no_worse = "" if method == "plain" else f"{_spanned(cell, 'no_worse')} of {cell['right_by_plain']}"
            parts = [method, context, cell["n"], _spanned(cell, "share"), minus, no_worse]
            parts += [f"{cell['unfinished']:.3f}", f"{cell['repeating']:.3f}", cell["skipped"], cell["failed"]]
            lines.append(f"| {' | '.join(map(str, parts))} |")
    return "\n".join(lines)


def _spanned(cell: Numbers, name: str, sign: str = "") -> str:
    if cell[name] is None:
        return "-"
    low, high = cell["interval" if name == "share" else f"{name}_interval"]
    return f"{cell[name]:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
