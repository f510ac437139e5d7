"""`tune` and `memograft tune`, with the bundled model and a few questions and trials."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from counting import Counting
from memograft import Engine, FastMem
from memograft.cli.app import app
from memograft.errors import MissingExtraError, SettingsError
from memograft.evaluation import runner, trials, tuning
from memograft.evaluation.items import Item, world
from memograft.evaluation.trials import Trial, score
from memograft.evaluation.tuning import Tuned, check, tune

SHORT = {"max_new_tokens": 4, "progress": False}


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return [item for item in world("tune", 3) if item.set in ("contradicts", "elsewhere")]


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "BATCH", 2)


def rows(*answers: str) -> list[dict[str, Any]]:
    """A record for each letter: r right, w wrong, l right but looping, c right but cut off."""
    return [
        {"right": a != "w", "finish_reason": "length" if a == "c" else "stop", "repeats": a == "l"}
        for a in "".join(answers)
    ]


def test_the_score_is_the_mean_gain_in_clean_answers() -> None:
    plain = {"a": rows("wwww"), "b": rows("rrrr")}
    assert score({"a": rows("rrww"), "b": rows("rrrr")}, plain) == (0.25, {"a": 0.5, "b": 0.0})
    assert score({"a": rows("rr")}, plain) == (1.0, {"a": 1.0}), "of the first questions"
    assert score({"a": rows("llcw"), "b": rows("rrrr")}, plain)[0] == 0.0, "looping and cut answers win nothing"


def test_a_set_below_plain_costs_more_than_another_gains() -> None:
    plain = {"a": rows("w" * 100), "b": rows("r" * 100)}
    small = score({"a": rows("r" * 10, "w" * 90), "b": rows("w", "r" * 99)}, plain)
    assert small == (0.045, {"a": 0.1, "b": -0.01}), "what is tolerated is not punished"
    great = score({"a": rows("r" * 50, "w" * 50), "b": rows("w" * 10, "r" * 90)}, plain)
    assert great == (-0.25, {"a": 0.5, "b": -0.1}), "0.5 and -0.1 - 10 * 0.09"


def test_a_summary_counts_with_its_rouge_if_it_has_ended() -> None:
    ended, cut = [{**row, "rouge_l": 0.5} for row in rows("wc")]
    assert score({"a": [ended, cut]}, {"a": [cut, cut]}) == (0.25, {"a": 0.25})


def test_the_best_is_complete_and_the_earlier_of_equals() -> None:
    tries = [(0.1, "complete"), (0.9, "pruned"), (0.3, "complete"), (0.3, "complete"), (0.8, "cut")]
    found = Tuned([Trial(FastMem(steps=n + 1), s, {}, 1, state) for n, (s, state) in enumerate(tries)], 1.0)  # type: ignore[arg-type]
    assert found.settings == FastMem(steps=3)
    assert [t.settings.steps for t in found.best] == [3, 4, 1]


def test_the_default_is_tried_first_and_nothing_worse_is_chosen(
    tiny: Engine, items: list[Item], tmp_path: Path
) -> None:
    found = tune(tiny, items, tmp_path, seconds=600, trials=3, **SHORT)
    assert found.trials[0].settings == tiny.defaults
    assert [(t.state, t.asked) for t in found.trials] == [("complete", 6)] * 3
    assert found.best[0].score == max(t.score for t in found.trials) >= found.trials[0].score
    for trial in found.trials[1:]:
        s = trial.settings
        assert s == replace(
            tiny.defaults, learning_rate=s.learning_rate, target_kl=s.target_kl, relevance=s.relevance
        ), "nothing else changes"
        assert 2e-4 <= float(s.learning_rate) <= 1e-2
        assert 0.2 <= (s.threshold or 0) <= 0.7
        assert s.target_kl is None or 0.03 <= float(s.target_kl) <= 2
    assert len({t.settings for t in found.trials}) == 3


def test_an_interrupted_search_goes_on_and_a_longer_one_begins_with_it(
    tiny: Engine, items: list[Item], tmp_path: Path
) -> None:
    alone = tune(tiny, items, tmp_path / "alone", seconds=600, trials=3, **SHORT)
    with pytest.raises(KeyboardInterrupt):  # in the second trial: plain and the default took 12
        tune(Counting(tiny, 16), items, tmp_path / "kept", seconds=600, trials=3, **SHORT)  # type: ignore[arg-type]
    rest = Counting(tiny)
    again = tune(rest, items, tmp_path / "kept", seconds=600, trials=3, **SHORT)  # type: ignore[arg-type]
    assert rest.asked == 4 * 6 - 16
    assert again.trials == alone.trials
    more = Counting(tiny)
    longer = tune(more, items, tmp_path / "kept", seconds=600, trials=4, **SHORT)  # type: ignore[arg-type]
    assert (longer.trials[:3], more.asked) == (alone.trials, 6)


def test_no_time_still_gives_a_valid_result(tiny: Engine, items: list[Item], tmp_path: Path) -> None:
    found = tune(tiny, items, tmp_path, seconds=1e-9, **SHORT)
    assert [t.state for t in found.trials] == ["complete"]
    assert found.settings == tiny.defaults


def test_a_trial_is_cut_when_the_time_is_up(
    tiny: Engine, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock stands still while plain and the default are asked (12 questions), and jumps in the next trial."""
    counting = Counting(tiny)
    clock = SimpleNamespace(monotonic=lambda: 0.0 if counting.asked < 14 else 1000.0)
    monkeypatch.setattr(tuning, "time", clock)
    monkeypatch.setattr(trials, "time", clock)
    found = tune(counting, items, tmp_path, seconds=10, **SHORT)  # type: ignore[arg-type]
    assert [(t.state, t.asked) for t in found.trials] == [("complete", 6), ("cut", 2)]
    assert found.settings == tiny.defaults


def test_hopeless_trials_are_stopped_early(
    tiny: Engine, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each trial scores less than the previous one; from the sixth, all are below the median after the first batch."""
    falling = iter(range(1000))
    monkeypatch.setattr("memograft.evaluation.trials.score", lambda *_: (-float(next(falling)), {"all": 0.0}))
    monkeypatch.setattr("memograft.evaluation.runner.run", lambda e, m, part, f, **_: {next(iter(m)): {"": [{}]}})
    found = tune(tiny, items, tmp_path, seconds=600, trials=7, **SHORT)
    assert [t.state for t in found.trials] == ["complete"] * 5 + ["pruned"] * 2


def test_what_cannot_be_tuned_is_said(tiny: Engine, items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="tuning needs questions, got none; pass items of the tuning split"):
        tune(tiny, [], "unused", seconds=1)
    with pytest.raises(SettingsError, match="`seconds` must be a positive number, got 0; give the search some time"):
        tune(tiny, items, "unused", seconds=0)
    with pytest.raises(SettingsError, match=r"`trials` must be at least 1 \(the default\), got 0; leave it out"):
        check(1, 0)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"tuning needs Optuna, .*; run pip install 'memograft\[tune\]'"):
        check(1, 1)


def run(*args: object, code: int = 0) -> Any:
    result = CliRunner(env={"COLUMNS": "140"}).invoke(app, [*map(str, args)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_the_command_writes_a_file_that_the_others_take(tmp_path: Path) -> None:
    file, few = tmp_path / "new" / "tuned.json", ["--n", 1, "--sets", "agrees", "--max-new-tokens", 3]
    result = run("tune", "world", *few, "--trials", 2, "--out", file, "--folder", tmp_path / "cells")
    *lines, last = result.stdout.splitlines()
    told = json.loads(last, parse_constant=pytest.fail)
    assert lines[0] == "Tuning split, 2 trials (2 complete); gains over plain:"
    assert "| trial | learning_rate | target_kl | relevance | score | agrees |" in lines
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")].count("| default") == 3
    assert (told["benchmark"], told["model"], told["questions"], told["n"]) == ("tune", "tiny", "world", 1)
    assert list(told["results"]) == ["plain", "default", "tuned"]
    assert "clean_minus_plain_interval" in told["results"]["tuned"]["agrees"]
    assert told["results"]["tuned"]["agrees"]["minus"].keys() == {"default"}
    assert len(told["tried"]) == told["trials"] == 2
    about = json.loads(file.read_text())["about"]
    assert {"date", "fingerprint", "versions", "score_on_the_tuning_split", "test", "seed", "seconds"} <= about.keys()
    assert str(tmp_path) not in file.read_text()
    assert told["settings"] == json.loads(json.dumps(asdict(FastMem.load(file))))
    evaluated = run("eval", "world", *few, "--settings", file, "--out", tmp_path / "cells").stdout.splitlines()[-1]
    assert json.loads(evaluated)["settings"][str(file)]["memory"] == {"kind": "fastmem", **told["settings"]}


def test_a_command_memorizes_as_a_file_says_and_as_its_options_say(tmp_path: Path) -> None:
    page = tmp_path / "page.txt"
    page.write_text("Ida Brandt keeps the Vik lighthouse.")
    file = FastMem(steps=2, learning_rate=3e-3).save(tmp_path / "mine.json")
    out = run("memorize", page, "--out", tmp_path / "memory", "--settings", file, "--steps", 1, "--json").stdout
    settings = json.loads(out.splitlines()[-1])["memory"]["settings"]
    assert (settings["steps"], settings["learning_rate"]) == (1, 3e-3)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--minutes", "0"], "error: `seconds` must be a positive number, got 0.0; give the search some time"),
        (["--sets", "none"], "error: `--sets` must be one of ['contradicts', 'agrees',"),
        (["--model", "no-such-model", "--n", "1"], "error: `--model` must be"),
    ],
)
def test_errors_are_one_line(args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("tune", "world", "--out", "tuned.json", *args, code=1)
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith(said)
