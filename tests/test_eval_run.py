"""Runs: the records, what is stored, and what is asked again after an interruption or a change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from counting import Counting
from memograft import Document, Engine, FastMem
from memograft.errors import SettingsError
from memograft.evaluation import runner
from memograft.evaluation.items import Item, world
from memograft.evaluation.methods import METHODS, Method
from memograft.evaluation.runner import run


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return [item for item in world("tune", 5) if item.set == "agrees"]


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "BATCH", 2)


PLAIN = {"plain": METHODS["plain"]}


def asked(engine: Engine, *args: Any, **options: Any) -> tuple[int, Any]:
    """(number of questions that were asked, records), with short answers where their text does not matter."""
    counting = Counting(engine)
    records = run(counting, *args, progress=False, **{"max_new_tokens": 2} | options)  # type: ignore[arg-type]
    return counting.asked, records


def without_times(records: Any) -> Any:
    return json.loads(
        json.dumps(records), object_hook=lambda d: {k: v for k, v in d.items() if k not in ("seconds", "timings")}
    )


def test_what_a_record_says(tiny: Engine, items: list[Item], tmp_path: Path) -> None:
    methods = {"plain": METHODS["plain"], "two steps": Method(memory=lambda: FastMem(steps=2))}
    records = run(tiny, methods, items[:2], tmp_path / "new" / "folder", progress=False)
    plain, memorized = (records[name]["agrees"][0] for name in methods)
    judged = {"right", "clean", "em", "f1", "belief", "other", "new_tokens", "chars", "finish_reason"}
    judged |= {"repeats", "recites", "timings", "hit", "formed"}
    assert plain.keys() == judged | {"id", "kind", "group", "text", "seconds", "commit"}
    assert (plain["id"], plain["right"], plain["belief"], plain["other"]) == (items[0].id, True, True, False)
    assert items[0].answers[0] in plain["text"]
    assert (plain["clean"], plain["finish_reason"], plain["repeats"]) == (True, "stop", False)
    assert 0 < plain["f1"] < 1
    assert not plain["em"], "it says a whole sentence"
    assert plain["recites"] >= 2
    assert plain["new_tokens"] == len(tiny.tokenizer(plain["text"])["input_ids"])
    assert plain["chars"] == len(plain["text"])
    assert plain["timings"].keys() == {"prefill", "memorize", "decode"}
    assert memorized["loss_after"] < memorized["loss_before"]
    assert (memorized["steps"], memorized["rolled_back"], memorized["reason"]) == (2, False, None)
    assert memorized["kl"] > 0
    assert len(memorized["relevance"]) == len(items[0].documents)
    assert memorized["seconds"] > 0


@pytest.mark.parametrize("patience", [0, 2, 4])
def test_an_interrupted_run_goes_on(tiny: Engine, items: list[Item], tmp_path: Path, patience: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Counting(tiny, patience), PLAIN, items, tmp_path / "parts", max_new_tokens=2, progress=False)  # type: ignore[arg-type]
    count, parts = asked(tiny, PLAIN, items, tmp_path / "parts")
    assert count == len(items) - patience
    assert asked(tiny, PLAIN, items, tmp_path / "parts") == (0, parts)
    if patience == 2:
        assert without_times(parts) == without_times(asked(tiny, PLAIN, items, tmp_path / "whole")[1])


def test_a_damaged_file_is_asked_again_where_it_is_damaged(tiny: Engine, items: list[Item], tmp_path: Path) -> None:
    _, whole = asked(tiny, PLAIN, items, tmp_path)
    (file,) = tmp_path.iterdir()
    lines = file.read_text().splitlines(keepends=True)
    damages = {
        "torn last line": ("".join(lines)[:-7], 1),
        "without its end of line": ("".join(lines)[:-1], 1),
        "torn in the middle of a batch": ("".join(lines[:4]) + lines[4][:30], 3),
        "not an object": ("".join(lines[:3]) + "[]\n" + "".join(lines[4:]), 3),
        "another question's": (lines[0] + "".join(reversed(lines[1:])), 5),
        "torn in the key": (lines[0][:20], 5),
        "empty": ("", 5),
        "not text": ("\udcff\udcfe", 5),
    }
    for name, (text, again) in damages.items():
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
        count, records = asked(tiny, PLAIN, items, tmp_path)
        assert count == again, name
        assert without_times(records) == without_times(whole), name
        assert [f.name for f in tmp_path.iterdir()] == [file.name]


def test_whatever_decides_the_answers_makes_a_new_cell(
    tiny: Engine, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = items[:1]

    def count(chosen: list[Item] = one, method: Method | None = None, **options: Any) -> int:
        return asked(tiny, {"m": method or METHODS["plain"]}, chosen, tmp_path, **options)[0]

    assert (count(), count()) == (1, 0)
    assert count(items[:2]) == 2
    assert count([replace(one[0], documents=(Document("Another page."),))]) == 1
    assert count([replace(one[0], answers=("another answer",))]) == 1
    assert count(max_new_tokens=3) == 1
    assert count(ignore_case=True) == 1
    assert count(method=Method(memory=lambda: FastMem(steps=1))) == 1
    assert count(method=Method(memory=lambda: FastMem(steps=2))) == 1
    assert count(method=METHODS["CAD"]) == 1
    assert count(method=replace(METHODS["CAD"], options={"alpha": 0.1})) == 1
    other = world("tune", 3)
    assert count(method=METHODS["few-shot"], examples=other) == 1
    assert count(method=METHODS["few-shot"], examples=other[:2]) == 1
    assert count(method=METHODS["few-shot"], examples=other) == 0
    assert count(examples=other) == 0, "which plain answering does not see"
    monkeypatch.setattr(tiny, "fingerprint", "another model")
    assert count() == 1
    monkeypatch.setattr(runner, "versions", lambda: {"torch": "9"})
    assert count() == 1
    monkeypatch.setattr(runner, "VERSION", 3)
    assert count() == 1
    monkeypatch.undo()
    assert count() == 0, "the first cell is still there"


def test_a_request_that_fails_is_wrong_and_counted(tiny: Engine, items: list[Item], tmp_path: Path) -> None:
    long = replace(items[1], id="long", documents=(Document("word " * 600),))
    methods = {name: METHODS[name] for name in ("plain", "irrelevant document memorized")}
    records = run(tiny, methods, [items[0], long, items[2]], tmp_path, progress=False)
    plain, irrelevant = (records[name]["agrees"] for name in methods)
    assert [r["right"] for r in plain] == [True, False, True]
    assert plain[1]["error"].startswith("PromptTooLongError: ")
    assert (plain[1]["finish_reason"], plain[1]["new_tokens"], plain[1]["f1"]) == (None, 0, 0.0)
    assert ["error" in r for r in irrelevant] == [False, True, True], "the second would memorize the long one"


def test_examples_steer_and_are_shown(tiny: Engine, items: list[Item], tmp_path: Path) -> None:
    methods = {name: METHODS[name] for name in ("few-shot", "RTD")}
    records = run(tiny, methods, items[:2], tmp_path, examples=world("tune", 4), max_new_tokens=2, progress=False)
    assert all(row["new_tokens"] == 2 for by_set in records.values() for row in by_set["agrees"])
    with pytest.raises(SettingsError, match="worked examples are needed for few-shot and RTD, got none"):
        run(tiny, {"plain": METHODS["plain"], **methods}, items, tmp_path / "none", progress=False)
    assert not list((tmp_path / "none").iterdir()), "before anything is asked"


def test_answers_are_looked_for_without_regard_to_case_if_wanted(
    tiny: Engine, items: list[Item], tmp_path: Path
) -> None:
    loud = [replace(items[0], answers=("nothing like it", items[0].answers[0].swapcase()))]
    found = [
        run(tiny, PLAIN, loud, tmp_path, ignore_case=case, progress=False)["plain"]["agrees"][0]["right"]
        for case in (False, True)
    ]
    assert found == [False, True]


def test_nothing_to_do_is_an_error(tiny: Engine, items: list[Item], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="a run needs questions and methods, got 0 and 1; pass both"):
        run(tiny, PLAIN, [], tmp_path)
    with pytest.raises(SettingsError, match="got 5 and 0"):
        run(tiny, {}, items, tmp_path)
