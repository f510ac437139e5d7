"""The three contexts of CUB: the shares worked out by hand, and a real run of the bundled model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
from PIL import Image
from typer.testing import CliRunner

from memograft.cli.app import app
from memograft.errors import SettingsError
from memograft.evaluation import plots
from memograft.evaluation.cells import Record
from memograft.evaluation.utilisation import check, table, utilisation

SETS = ("agrees", "contradicts", "irrelevant")


def rows(right: str, texts: str = "", **more: object) -> list[Record]:
    """A record for each letter: r for right, w for wrong. `texts` are the answers, a letter each."""
    made = [
        {"id": str(n), "group": f"q{n}", "right": letter == "r", "belief": False, "text": text, "finish_reason": "stop"}
        | {"repeats": False, **more}
        for n, (letter, text) in enumerate(zip(right, texts or right, strict=True))
    ]
    return cast("list[Record]", made)


def answered(agrees: str, contradicts: str, irrelevant: list[Record], **more: object) -> dict[str, list[Record]]:
    return {"agrees": rows(agrees, **more), "contradicts": rows(contradicts, **more), "irrelevant": irrelevant}


def test_the_shares_worked_out_by_hand() -> None:
    # Without a page, the model answers question 0 right, and says x, y, z to the others.
    closed = {name: rows("rwww", "kxyz") for name in SETS}
    plain = answered("rrww", "rwww", rows("rrww", "klmz"))  # right again, right now, another answer, the same answer
    memory = {"memorized": 1, "rolled_back": False}
    method = answered("rwrr", "rrrw", rows("wwww", "axyb"), **memory)
    method["agrees"][1] |= {"finish_reason": "length", "memorized": 0, "rolled_back": True}
    method["agrees"][2] |= {"repeats": True, "error": "E"}
    found = utilisation({"no document": closed, "plain": plain, "method": method})
    assert list(found) == ["plain", "method"]
    assert {c: cell["share"] for c, cell in found["plain"].items()} == {
        "gold": 0.5, "conflicting": 0.25, "irrelevant": 0.5, "total": 0.4167,
    }  # fmt: skip
    assert {c: cell["share"] for c, cell in found["method"].items()} == {
        "gold": 0.75, "conflicting": 0.75, "irrelevant": 0.5, "total": 0.6667,
    }  # fmt: skip
    assert {c: (cell["no_worse"], cell["right_by_plain"]) for c, cell in found["method"].items()} == {
        "gold": (0.5, 2), "conflicting": (1.0, 1), "irrelevant": (0.0, 2), "total": (0.4, 5),
    }  # fmt: skip
    assert [cell["minus_plain"] for cell in found["method"].values()] == [0.25, 0.5, 0.0, 0.25]
    gold = found["method"]["gold"]
    assert (gold["n"], gold["unfinished"], gold["repeating"]) == (4, 0.25, 0.25)
    assert (gold["skipped"], gold["rolled_back"], gold["failed"]) == (1, 1, 1)
    assert found["method"]["total"]["n"] == 12
    assert [cell["minus_plain"] for cell in found["plain"].values()] == [0.0] * 4


def test_answers_to_one_question_are_drawn_together() -> None:
    """Ten questions that are right in all contexts or in none are worth ten values, not thirty."""
    closed = {name: rows("w" * 10, "bcdefghijk") for name in SETS}
    half, alone = "rrrrrwwwww", "bcdef-----"
    found = utilisation({"no document": closed, "plain": answered(half, half, rows(half, alone))})
    low, high = found["plain"]["total"]["interval"]
    assert [low, high] == found["plain"]["gold"]["interval"]
    apart = answered(half, half, rows(half, alone))
    for name, of_set in apart.items():
        for row in of_set:
            row["group"] = f"{name} {row['id']}"
    low_apart, high_apart = utilisation({"no document": closed, "plain": apart})["plain"]["total"]["interval"]
    assert high_apart - low_apart < 0.8 * (high - low)


def test_a_method_that_nothing_can_be_compared_with() -> None:
    closed = {name: rows("ww", "xy") for name in SETS}
    wrong = answered("ww", "ww", rows("ww", "ab"))
    found = utilisation({"no document": closed, "plain": wrong, "CAD": wrong})
    assert found["CAD"]["gold"]["no_worse"] is None
    assert "| CAD | gold | 2 | 0.000 [0.000, 0.000] | +0.000 [+0.000, +0.000] | - of 0 |" in table(found)


@pytest.mark.parametrize("sets", [["agrees", "contradicts"], ["agrees", "contradicts", "irrelevant", "elsewhere"]])
def test_each_context_needs_one_set(sets: list[str]) -> None:
    with pytest.raises(
        SettingsError, match=r"the three contexts of CUB need the sets .*, got for 'irrelevant' .*; ask"
    ):
        check(sets)


def test_bars_and_a_table_from_a_real_run(tmp_path: Path) -> None:
    picture, options = tmp_path / "cub.png", []
    for name in ("agrees", "contradicts", "elsewhere"):
        options += ["--sets", name]
    options += ["--n", "4", "--method", "memorized", "--max-new-tokens", "16", "--out", str(tmp_path / "cells")]
    runner = CliRunner(env={"COLUMNS": "140"})
    result = runner.invoke(app, ["eval", "world", "--split", "tune", *options, "--cub", str(picture)])
    assert result.exit_code == 0, (result.output, result.exception)
    *lines, last = result.stdout.splitlines()
    told = json.loads(last, parse_constant=pytest.fail)
    found, results = told["utilisation"], told["results"]
    assert "\n".join(lines).endswith(table(found))
    assert list(found) == ["plain", "memorized"]
    assert results.keys() == {"plain", "memorized", "no document"}
    for method, by_context in found.items():
        for context, name in (("gold", "agrees"), ("conflicting", "contradicts")):
            assert by_context[context]["share"] == results[method][name]["accuracy"]
        for context, name in (("gold", "agrees"), ("conflicting", "contradicts"), ("irrelevant", "elsewhere")):
            assert by_context[context]["no_worse"] == results[method][name]["kept_of_plain"]
            assert by_context[context]["unfinished"] == results[method][name]["unfinished"]
    known = results["no document"]["elsewhere"]["accuracy"]
    assert known > 0.5, "tiny knows these facts, so that keeping them can be seen"
    assert found["plain"]["irrelevant"]["share"] > 0
    with Image.open(picture) as image:
        assert image.size == (1560, 624)
        drawn = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or []}
    assert {(0x6B, 0x6B, 0x6B), (0xE6, 0x9F, 0x00)} <= drawn, "a bar of each method"


def test_the_command_refuses_before_it_asks(tmp_path: Path) -> None:
    for options, said in (
        (["--sets", "agrees", "--cub", "a.png"], "error: the three contexts of CUB need the sets"),
        (
            ["--sets", "agrees", "--sets", "contradicts", "--sets", "elsewhere", "--cub", "a.svg"],
            "error: a picture must be a .png file, got 'a.svg'; rename it",
        ),
    ):
        result = CliRunner().invoke(app, ["eval", "world", "--out", str(tmp_path / "cells"), *options])
        assert (result.exit_code, result.stdout) == (1, "")
        assert said in " ".join(result.stderr.split())
        assert not (tmp_path / "cells").exists()


def test_a_method_without_a_bar_is_drawn_as_nothing(tmp_path: Path) -> None:
    closed = {name: rows("ww", "xy") for name in SETS}
    wrong = answered("ww", "ww", rows("ww", "ab"))
    found = utilisation({"no document": closed, "plain": wrong})
    assert plots.bars(found, tmp_path / "folder" / "none.png", "nothing").stat().st_size > 10_000
