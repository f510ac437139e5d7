"""`memograft ask` with options of sampling and a device."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from memograft import Dola, Engine, Sampling
from memograft.cli.app import app

QUESTION = "Tell me something about Australia."


def asked(*options: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["ask", QUESTION, "-k", "0", "--max-new-tokens", "12", "--json", *options])
    assert result.exit_code == code, result.output
    return str(json.loads(result.stdout)["plain"]["text"]) if code == 0 else result.output


@pytest.mark.parametrize(
    ("options", "sampling"),
    [
        (("--temperature", "3", "--seed", "7"), Sampling(12, 3.0, seed=7)),
        (("--temperature", "3", "--seed", "7", "--min-p", "0.5"), Sampling(12, 3.0, seed=7, min_p=0.5)),
        (("--repetition-penalty", "1.8"), Sampling(12, repetition_penalty=1.8)),
        (("--device", "cpu"), Sampling(12)),
    ],
)
def test_options_reach_the_engine(tiny: Engine, options: tuple[str, ...], sampling: Sampling) -> None:
    assert asked(*options) == tiny.answer(QUESTION, sampling=sampling).text


def test_contrasts_reach_the_engine(tiny: Engine) -> None:
    assert (
        asked("--dola", "2", "--cad", "adaptive")
        == tiny.answer(QUESTION, processors=[Dola((2,))], sampling=Sampling(12)).text
    )
    assert asked("--dola", "2") != asked()
    assert "low, high or numbers of layers" in asked("--dola", "deep", code=2)
    assert "a number that is not" in asked("--cad", "-1", code=2)
    refused = asked("--cad", "1", "--settings", "faithful", code=1)
    assert "the settings have context-aware decoding, got --cad 1.0 too; leave one of them out" in refused


def test_the_options_make_a_difference() -> None:
    sampled = ("--temperature", "3", "--seed", "7")
    answers = {asked(), asked(*sampled), asked(*sampled, "--min-p", "0.5"), asked("--repetition-penalty", "1.8")}
    assert len(answers) == 4


def test_values_out_of_range() -> None:
    assert "`repetition_penalty` must be above 0" in asked("--repetition-penalty", "-1", code=1)
    assert "nowhere" in asked("--device", "nowhere", code=1)
