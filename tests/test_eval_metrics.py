"""Accuracies, intervals, paired differences and the table against numbers computed by hand; the plot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memograft.errors import MissingExtraError, SettingsError
from memograft.evaluation import metrics, plots
from memograft.evaluation.metrics import details, difference, interval, summary, table


def rows(right: str, **more: Any) -> list[dict[str, Any]]:
    """A record for each letter; r is right."""
    base = {"kind": "", "belief": False, "other": False, "seconds": 0.5, "em": False, "f1": 0.5, "new_tokens": 4}
    base |= {"hit": False, "formed": True, "repeats": False, "recites": 2, "finish_reason": "stop", "text": "so"}
    base |= {"timings": {"prefill": 0.1, "memorize": 0.2, "decode": 0.3}}
    letters = enumerate(right)
    return [base | {"id": str(n), "right": letter == "r", "clean": letter == "r"} | more for n, letter in letters]


def test_intervals() -> None:
    assert interval(np.ones(50)) == [1.0, 1.0]
    coin = np.array([0.0, 1.0] * 200)
    low, high = interval(coin)
    error = 1.96 * 0.5 / 20  # 95% interval of the mean of 400 coins
    assert (low, high) == pytest.approx((0.5 - error, 0.5 + error), abs=0.01)
    assert interval(coin) == [low, high], "the same every time"


def test_a_large_file_is_bootstrapped_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).random(60)
    whole = interval(values)
    monkeypatch.setattr(metrics, "_MOST", 60 * 999)
    assert interval(values) == pytest.approx(whole, abs=0.005)


def naive_interval(values: Any, groups: list[str]) -> list[float]:
    """The clustered bootstrap with loops over rounds and groups."""
    names = list(dict.fromkeys(groups))
    members = [[v for v, g in zip(values, groups, strict=True) if g == name] for name in names]
    rng = np.random.default_rng(0)
    means = []
    for _ in range(metrics.ROUNDS):
        drawn = [value for pick in rng.integers(0, len(names), len(names)) for value in members[pick]]
        means.append(sum(drawn) / len(drawn))
    return [round(float(q), 4) for q in np.quantile(means, (0.025, 0.975))]


def test_groups_are_drawn_whole() -> None:
    rng = np.random.default_rng(2)
    groups = [f"q{n}" for n in range(12) for _ in range(1 + n % 4)]
    values = rng.random(len(groups))
    assert interval(values, groups) == pytest.approx(naive_interval(values, groups), abs=1e-4)
    assert interval(values, range(len(values))) == interval(values), "alone in their groups: the plain bootstrap"
    tens = [n // 10 for n in range(400)]
    low, high = interval(np.array([0.0, 1.0]).repeat(10).reshape(2, 10)[[0, 1] * 20].ravel(), tens)
    assert high - low > 0.25, "40 groups that agree within are worth 40 values, not 400"


def test_differences_are_drawn_by_group() -> None:
    here, there = rows("rrrrwwww"), rows("wwwwwwww")
    alone = difference(here, there)
    for n, row in enumerate(here):
        row["group"] = str(n // 4)
    assert difference(here, there) == {"difference": 0.5, "interval": [0.0, 1.0]}
    assert alone["interval"] != [0.0, 1.0]
    for n, row in enumerate(here):
        row["group"] = "" if n < 4 else str(n)
    assert difference(here, there) == alone, "one that names no group stands alone"


def test_differences_are_paired() -> None:
    """Two methods that are right for the same questions do not differ, whatever their accuracy."""
    same = difference(rows("rrww" * 10), rows("rrww" * 10))
    assert same == {"difference": 0.0, "interval": [0.0, 0.0]}
    unpaired = difference(rows("rrww" * 10), rows("wwrr" * 10))
    assert unpaired["difference"] == 0.0
    assert unpaired["interval"][0] < -0.2
    with pytest.raises(
        SettingsError, match="a paired difference needs the same questions in the same order, got 1 and 2"
    ):
        difference(rows("r"), rows("rr"))


def test_a_summary_worked_out_by_hand() -> None:
    memory = {"loss_before": 2.0, "loss_after": 1.0, "kl": 0.5, "steps": 10, "rolled_back": True}
    memory |= {"memorized": 2, "disagree": False}
    memorized = rows("rrrw", kind="real", **memory)
    memorized[0] |= {"kl": None, "kind": "made-up", "memorized": 0, "new_tokens": 8, "em": True, "hit": True}
    memorized[1] |= {"formed": False}
    memorized[2] |= {"repeats": True, "clean": False, "finish_reason": "length", "belief": True}
    memorized[3] = {k: v for k, v in memorized[3].items() if k not in {*memory, "timings", "text"}}
    memorized[3] |= {"error": "E", "other": True, "belief": True, "finish_reason": None, "f1": 0.0, "formed": False}
    records = {"plain": {"a": rows("rwwr")}, "memorized": {"a": memorized}, "restricted": {"a": rows("rrrr")}}
    results = summary(records, against=["restricted"])
    assert "minus" in results["plain"]["a"]
    cell = results["memorized"]["a"]
    low, high = cell.pop("interval")
    assert (low, high) == (0.25, 1.0)
    assert cell.pop("minus")["restricted"]["difference"] == -0.25
    assert cell.pop("minus_plain_interval") == [-0.5, 1.0]
    assert cell.pop("clean_minus_plain_interval") == [-0.75, 0.75]
    assert cell == {
        "n": 4, "accuracy": 0.75, "clean": 0.5, "hit": 0.25, "em": 0.25, "f1": 0.375, "failed": 1, "seconds": 2.0,
        "malformed": 0.25, "unfinished": 0.25, "repeating": 0.25, "new_tokens": 5.0, "recited": 2.0,
        "belief": 0.5, "other": 0.25, "memorization_ratio": 0.3333,
        "minus_plain": 0.25, "clean_minus_plain": 0.0, "won": 2, "lost": 1, "kept_of_plain": 0.5,
        "timings": {"prefill": 0.1, "memorize": 0.2, "decode": 0.3},
        "mean_loss_before": 2.0, "mean_loss_after": 1.0, "mean_kl": 0.5, "mean_steps": 10.0, "rolled_back": 3,
        "mean_memorized": 1.3333, "skipped": 1, "disagree": 0.0,
        "accuracy_made-up": 1.0, "accuracy_real": 0.6667,
    }  # fmt: skip
    assert results["restricted"]["a"]["minus"] == {}


def test_beliefs_kept_are_those_of_the_model_itself() -> None:
    """With four questions that it answers wrong without documents, and one that it answers right."""
    closed = rows("wwwwr", text="The Rome.")
    closed[0] |= {"text": "It is Bonn, I think.", "belief": True}
    here = rows("wwrrr", text="It is in rome")
    here[0] |= {"text": "Bonn", "belief": True}  # the same belief in other words
    here[1] |= {"text": "Romeo"}
    here[2] |= {"text": ""}
    results = summary({"no document": {"a": closed}, "plain": {"a": here}})
    assert results["plain"]["a"]["belief_kept"] == 0.5
    assert results["no document"]["a"]["belief_kept"] == 1.0
    closed[1]["text"] = closed[3]["text"] = "The."
    results = summary({"no document": {"a": closed}, "plain": {"a": here}})
    assert results["plain"]["a"]["belief_kept"] == 0.25, "nothing that is said is no belief"
    right = {"no document": {"a": rows("rr")}, "plain": {"a": rows("rw")}}
    assert summary(right)["plain"]["a"]["belief_kept"] is None


def test_summaries_are_judged_by_rouge() -> None:
    plain, memorized = rows("ww"), rows("ww")
    for n, (before, after) in enumerate([(0.25, 0.5), (0.25, 0.0)]):
        plain[n]["rouge_l"], memorized[n]["rouge_l"] = before, after
    results = summary({"plain": {"s": plain}, "memorized": {"s": memorized}}, against=["plain"])
    cell = results["memorized"]["s"]
    assert (cell["rouge_l"], cell["interval"]) == (0.25, [0.0, 0.5])
    assert (cell["minus_plain"], cell["minus_plain_interval"]) == (0.0, [-0.25, 0.25])
    assert cell["minus"]["plain"]["interval"] == [-0.25, 0.25]
    assert not {"accuracy", "clean", "hit", "em", "f1", "won"} & cell.keys(), "there is nothing to be right about"
    assert table(results).splitlines()[-1] == "| memorized | 0.250 (+0.000 [-0.250, +0.250]) |"


def test_what_accuracy_alone_does_not_show() -> None:
    looping = rows("rr", clean=False, repeats=True, finish_reason="length", new_tokens=40)
    heading, plain, memorized = details(summary({"plain": {"a": rows("rr")}, "memorized": {"a": looping}}), "a")
    shown = dict(zip(heading, memorized, strict=True))
    assert (shown["method"], shown["accuracy"], shown["clean"], shown["unfinished"]) == (
        "memorized",
        "1.000",
        "0.000",
        "1.000",
    )
    assert (shown["repeating"], shown["new tokens"], shown["won"]) == ("1.000", "40.0", "0")
    assert dict(zip(heading, plain, strict=True))["clean"] == "1.000"
    assert "rouge l" not in heading
    assert "skipped" not in heading


def test_the_table() -> None:
    both = {"plain": {"a": rows("rw"), "b": rows("rr")}, "memorized": {"a": rows("rr"), "b": rows("rr")}}
    assert table(summary(both)).splitlines() == [
        "| method | a | b |",
        "|---|---|---|",
        "| plain | 0.500 | 1.000 |",
        "| memorized | 1.000 (+0.500 [+0.000, +1.000]) | 1.000 (+0.000 [+0.000, +0.000]) |",
    ]
    alone = summary({"memorized": {"a": rows("rr")}})
    assert table(alone).splitlines()[-1] == "| memorized | 1.000 |"


# the plot -----------------------------------------------------------------------------------------------------


def many() -> dict[str, Any]:
    """Twelve methods close together, and one far away."""
    rng = np.random.default_rng(0)
    results: dict[str, Any] = {"plain": {}, "no document": {}}

    def cell(change: float) -> dict[str, Any]:
        return {"minus_plain": change, "minus_plain_interval": [change - 0.02, change + 0.02]}

    for n in range(12):
        gains = {"contradicts": cell(0.3 + rng.normal() / 50)}
        results[f"steps={n}, learning_rate=1e-3"] = gains | {name: cell(-rng.random() / 90) for name in plots.COSTS}
    results["restricted"] = {"contradicts": cell(0.3), **{name: cell(-0.9) for name in plots.COSTS}}
    results["memorized"] = {"contradicts": cell(0.3), "agrees": cell(-0.01), "elsewhere": cell(-0.02)}
    return results


def test_dots() -> None:
    found = {dot.name: dot for dot in plots.dots(many(), ["steps=1, learning_rate=1e-3"])}
    assert len(found) == 14
    assert [found[n].style for n in ("memorized", "steps=1, learning_rate=1e-3", "restricted")] == [
        "default",
        "ours",
        "others",
    ]
    default = found["memorized"]
    assert (default.gain, default.loss) == (30.0, 2.0), "the worst of its sets"
    assert default.gain_interval == pytest.approx((28.0, 32.0))
    assert default.loss_interval == pytest.approx((0.0, 4.0))


def test_a_picture_is_drawn_and_no_label_covers_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    drawn: list[Any] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)))
    path = plots.draw(plots.dots(many(), []), tmp_path / "new" / "frontier.png", "A title")
    png = path.read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(png[16:20]), int.from_bytes(png[20:24])) == (1600, 1120)
    assert [f.name for f in path.parent.iterdir()] == ["frontier.png"]
    (figure,) = drawn
    renderer = figure.canvas.get_renderer()
    texts = figure.axes[0].texts
    assert {t.get_text() for t in texts} >= {"memorized", "restricted  (90 points lost)"}
    boxes = [Text.get_window_extent(t, renderer) for t in texts]  # without the line to the dot
    assert len(boxes) == 14
    inside = figure.axes[0].get_window_extent(renderer)
    for n, box in enumerate(boxes):
        assert inside.x0 <= box.x0, texts[n].get_text()
        assert box.x1 <= inside.x1, texts[n].get_text()
        assert not any(box.overlaps(other) for other in boxes[n + 1 :]), texts[n].get_text()


def test_what_cannot_be_drawn_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    sets, methods, path = ["contradicts", "agrees"], ["plain", "memorized"], Path("a.png")
    plots.check(methods, sets, path)
    with pytest.raises(SettingsError, match=r"a picture must be a \.png file, got 'a\.svg'; rename it"):
        plots.check(methods, sets, Path("a.svg"))
    for some_methods, some_sets in ((methods, ["all"]), (methods, ["contradicts"]), (["plain", "no document"], sets)):
        with pytest.raises(SettingsError, match="a picture compares methods with plain on the set 'contradicts' and"):
            plots.check(some_methods, some_sets, path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r'not installed; run pip install "memograft\[eval\]"'):
        plots.check(methods, sets, path)
