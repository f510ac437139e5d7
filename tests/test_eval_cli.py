"""`memograft eval`, end to end with the bundled model and a few questions."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from memograft import FastMem
from memograft.cli.app import app
from memograft.evaluation.methods import METHODS
from memograft.model.config import of_model
from memograft.model.loading import BUNDLED


def run(*args: object, code: int = 0) -> Any:
    result = CliRunner(env={"COLUMNS": "140"}).invoke(app, ["eval", *map(str, args)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_a_table_for_people_and_json_last(tmp_path: Path) -> None:
    out, plot = tmp_path / "cells", tmp_path / "frontier.png"
    wanted = [
        "--n",
        2,
        "--sets",
        "contradicts",
        "--sets",
        "elsewhere",
        "--settings",
        "steps=2",
        "--method",
        "memorized",
    ]
    wanted += ["--max-new-tokens", 8]
    result = run("world", "--split", "tune", *wanted, "--against", "memorized", "--out", out, "--plot", plot)
    *lines, last = result.stdout.splitlines()
    assert lines[0] == "| method | contradicts | elsewhere |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| plain", "| memorized", "| steps=2"]
    told = json.loads(last, parse_constant=pytest.fail)
    assert (told["model"], told["questions"], told["n"]) == ("tiny", "world, tune", 2)
    assert told["results"]["steps=2"]["elsewhere"]["n"] == 2
    assert told["results"]["steps=2"]["elsewhere"]["minus"].keys() == {"memorized"}
    assert told["settings"]["steps=2"]["memory"]["steps"] == 2
    assert told["default"] == json.loads(json.dumps(asdict(FastMem().resolved(of_model("tiny", BUNDLED)))))
    assert told["versions"].keys() == {"memograft", "torch", "transformers", "peft"}
    assert {"commit", "device", "threads", "python", "seconds", "fingerprint", "commits_of_the_answers"} <= told.keys()
    assert plot.stat().st_size > 20_000
    assert len(list(out.iterdir())) == 6
    again = json.loads(run("world", "--split", "tune", *wanted, "--out", out).stdout.splitlines()[-1])
    assert again["results"]["steps=2"]["elsewhere"]["seconds"] == told["results"]["steps=2"]["elsewhere"]["seconds"]


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    page, question = "The capital of France is Paris. ", "What is the capital of France?"
    lines = [
        {"question": question, "documents": [page], "answer": "PARIS"},
        {"question": question, "documents": [page * 100], "answer": "Paris"},
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run(file, "--method", "plain", "--out", tmp_path / "cells", "--html", tmp_path / "report.html")
    shown = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert question in shown
    assert "mine.jsonl" in shown
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["questions"] == "mine.jsonl"
    cell = told["results"]["plain"]["all"]
    assert (cell["accuracy"], cell["failed"]) == (0.5, 1)
    assert "warning: plain: all: 1 of 2 failed and count as wrong; the first: PromptTooLongError:" in result.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere.jsonl"], "error: there is no file nowhere.jsonl; name a .jsonl or .json file of questions"),
        (["world", "--method", "magic"], "error: `--method` must be one of ['no document', 'plain',"),
        (["world", "--settings", "stepz=1"], "error: `stepz` is not a setting of FastMem"),
        (["world", "--only-known", "none"], "error: `--only-known` must be one of ['contradicts', 'agrees',"),
        (["world", "--protocol", "paper"], 'error: "world" has its own sets and its own protocol, got `--format`,'),
        (["world", "--split", "all"], "error: `split` must be one of ('test', 'tune'), got 'all'"),
        (["world", "--sets", "none"], "error: `--sets` must be one of ['contradicts', 'agrees',"),
        (["world", "--method", "CAD", "--against", "memorized"], "error: `--against` must be one of ['plain', 'CAD'],"),
        (["world", "--plot", "a.svg"], "error: a picture must be a .png file, got 'a.svg'; rename it"),
        (["world", "--model", "no-such-model", "--n", "1"], "error: `--model` must be"),
    ],
)
def test_errors_are_one_line(args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*args, code=1)
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith(said)


def squad(path: Path, *facts: tuple[str, str, str]) -> Path:
    """A file in SQuAD's format with (question, answer, page), and one more question without an answer."""
    paragraphs = [
        {
            "context": page,
            "qas": [{"id": str(n), "question": question, "answers": [{"text": answer}] if answer else []}],
        }
        for n, (question, answer, page) in enumerate((*facts, ("Who?", "", "Nobody.")))
    ]
    path.write_text(json.dumps({"data": [{"title": str(n), "paragraphs": [p]} for n, p in enumerate(paragraphs)]}))
    return path


FACTS = [
    ("What is the capital of France?", "Paris", "Paris is the capital of France."),
    ("Who wrote Middlemarch?", "George Eliot", "George Eliot wrote Middlemarch."),
    ("Who keeps the Vik lighthouse?", "Ida Brandt", "Ida Brandt keeps the Vik lighthouse."),
]


def test_a_public_set_in_two_contexts(tmp_path: Path) -> None:
    file = squad(tmp_path / "dev.json", *FACTS)
    options = ["--split", "all", "--context", "agrees", "--context", "no document", "--method", "plain", "--n", 2]
    result = run(file, *options, "--out", tmp_path / "cells")
    told = json.loads(result.stdout.splitlines()[-1])
    assert {name: told[name] for name in ("questions", "format", "split", "protocol", "n", "max_new_tokens")} == {
        "questions": "dev.json", "format": "squad", "split": "all", "protocol": "plain", "n": 2, "max_new_tokens": 40,
    }  # fmt: skip
    assert list(told["results"]["plain"]) == ["agrees", "no document"]
    assert told["skipped"] == {"the page does not answer the question": 1}
    assert "skipped: 1: the page does not answer the question" in result.stderr


def test_the_papers_protocol_has_its_own_question_and_length(tmp_path: Path) -> None:
    file = squad(tmp_path / "dev.json", *FACTS)
    wanted = ["--split", "all", "--context", "agrees", "--method", "plain", "--protocol", "paper"]
    told = json.loads(run(file, *wanted, "--out", tmp_path / "cells").stdout.splitlines()[-1])
    assert (told["protocol"], told["max_new_tokens"]) == ("paper", 100)


def test_only_what_the_model_knows(tmp_path: Path) -> None:
    file = squad(tmp_path / "dev.json", *FACTS)
    wanted = ["--split", "all", "--context", "agrees", "--context", "no document", "--method", "plain"]
    known = ["--only-known", "no document", "--out", tmp_path / "cells"]
    told = json.loads(run(file, *wanted, *known).stdout.splitlines()[-1])
    cells = told["results"]["plain"]
    assert (cells["agrees"]["n"], cells["no document"]["n"], cells["no document"]["accuracy"]) == (3, 2, 1.0)
    assert told["skipped"]["no document: the model does not answer it without a document"] == 1
    lonely = squad(tmp_path / "lonely.json", FACTS[2])
    said = run(lonely, *wanted, *known, code=1).stderr.splitlines()[-1]
    assert said.startswith("error: `--only-known` must leave a question of the set 'no document', got none that the mo")


def test_help_lists_the_methods_without_torch() -> None:
    said = " ".join(run("--help").stdout.replace("\u2502", " ").split())
    assert all(name in said for name in METHODS)
    code = "import sys, memograft.cli.app; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_without_a_choice_all_methods_are_asked(tmp_path: Path) -> None:
    """Few-shot and RTD take their examples from the other split."""
    said = run("world", "--split", "tune", "--n", "2", "--sets", "agrees", "--out", tmp_path, "--max-new-tokens", "4")
    told = json.loads(said.stdout.splitlines()[-1])
    assert list(told["results"]) == list(METHODS)
    assert all(cell["agrees"]["failed"] == 0 for cell in told["results"].values())
