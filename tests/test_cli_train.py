"""`memograft train gist` and `memograft eval --gist`, with a random model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memograft import Engine, Gist
from test_cli import docs, model, run, run_json  # noqa: F401

SHORT = ("--tokens", 2, "--window", 128, "--steps", 4, "--groups", 2, "--rank", 2, "--every", 2)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "samples.jsonl"
    lines = [
        {"documents": ["The river of Velmora is the Traikan."], "question": "Which river?", "answer": "The Traikan."},
        {"documents": ["The mayor is Mila.", "The town is Bergen."], "question": "Which town?", "answer": "Bergen."},
        {"documents": ["The river of Velmora is the Traikan."], "question": "Whose river?", "answers": ["Velmora's."]},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def test_an_interrupted_run_continues(model: str, data: Path, tmp_path: Path) -> None:  # noqa: F811
    arguments = ("train", "gist", "--model", model, "--data", data, "--held-out", data, *SHORT, "--out")
    whole = run_json(*arguments, tmp_path / "whole")
    assert (whole["steps"], [score["step"] for score in whole["scores"]]) == (4, [2, 4])
    assert whole["tokens_seen"] > 100
    part = run_json(*arguments, tmp_path / "parts", "--stop-at", 2)
    assert part["steps"] == 2
    last = run_json(*arguments, tmp_path / "parts")
    same = ("steps", "tokens_seen", "loss", "scores")
    assert [last[name] for name in same] == [whole[name] for name in same]
    for name in ("gist.json", "gist.safetensors", "adapter_model.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert Path(last["picture"]).read_bytes().startswith(b"\x89PNG")
    other = run_json(*arguments, tmp_path / "parts", "--seed", 3, code=1)
    assert "has a run with `seed` = 0, got 3" in other["error"]
    said = run(*arguments, tmp_path / "whole").output
    assert "4 of 4 steps" in said
    assert "held-out questions: {'step': 4" in said
    with Engine.from_pretrained(model) as engine:
        gist = Gist(str(tmp_path / "whole"), tokens=2)
        assert engine.answer("Which river?", ["The river of Velmora is the Traikan."], memory=gist).memory is not None


def test_squad_files_are_read(model: str, tmp_path: Path) -> None:  # noqa: F811
    def asked(id: str, question: str, answer: str, at: int) -> dict[str, object]:
        return {"id": id, "question": question, "answers": [{"text": answer, "answer_start": at}]}

    text = "The river of Velmora is the Traikan, and its mayor is Mila."
    questions = [asked("1", "Which river does Velmora have?", "the Traikan", 24), asked("2", "Who rules?", "Mila", 54)]
    page = {"title": "Velmora", "paragraphs": [{"context": text, "qas": questions}]}
    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"version": "1.1", "data": [page]}))
    made = run_json("train", "gist", "--model", model, "--data", file, "--out", tmp_path / "gist", *SHORT)
    assert made["steps"] == 4


def test_a_gist_is_evaluated_beside_its_controls(model: str, data: Path, tmp_path: Path) -> None:  # noqa: F811
    gist = tmp_path / "gist"
    run("train", "gist", "--model", model, "--data", data, *SHORT, "--out", gist)
    arguments = ("eval", data, "--model", model, "--method", "no document", "--out", tmp_path / "eval")
    result = json.loads(run(*arguments, "--gist", gist).stdout.splitlines()[-1])
    assert list(result["results"]) == ["plain", "no document", f"gist {gist}"]
    assert result["settings"][f"gist {gist}"]["memory"]["folder"] == str(gist)
    refused = run(*arguments, "--gist", tmp_path, code=1)
    assert "a gist needs gist.json" in refused.output
    result = json.loads(run(*arguments, "--gist", f"{gist}, refine=1").stdout.splitlines()[-1])
    assert result["settings"][f"gist {gist}, refine=1"]["memory"]["refine"] == 1
    for wrong, rule in {"steps=4": "`steps` is not a setting of Gist, whose", "refine": "must be written as"}.items():
        assert rule in " ".join(run(*arguments, "--gist", f"{gist}, {wrong}", code=1).output.split())


def test_what_cannot_be_trained_on_is_refused(model: str, data: Path, tmp_path: Path) -> None:  # noqa: F811
    arguments = ("train", "gist", "--model", model, "--out", tmp_path / "gist")
    assert "there is no file" in run_json(*arguments, "--data", tmp_path / "nothing.jsonl", code=1)["error"]
    small = run_json(*arguments, "--data", data, "--window", 9, code=1)
    assert "`window` must have at least 8 tokens behind the" in small["error"]
    assert not (tmp_path / "gist").exists()


def test_a_gist_is_checked_and_asked(model: str, data: Path, docs: Path, tmp_path: Path) -> None:  # noqa: F811
    gist, store = tmp_path / "gist", tmp_path / "store"
    run("train", "gist", "--model", model, "--data", data, *SHORT, "--out", gist)
    assert run_json("check", gist)["kind"] == "gist"
    run("index", docs, "--store", store)
    page = tmp_path / "page.html"
    arguments = ("ask", "Which river?", "--model", model, "--store", store, "--max-new-tokens", 4, "--gist", gist)
    answer = run_json(*arguments, "--html", page)
    assert [document["memorized"] for document in answer["documents"]] == [True] * 3
    assert answer["memorized"]["text"] != answer["plain"]["text"]
    assert page.exists()
    refused = run(*arguments, "--rank", 3, code=2)
    assert "gist tokens are not memorized, got --rank" in refused.output
    assert run_json(*arguments, "--refine", 1, "--memory")["memorized"]["memory"]["settings"]["refine"] == 1
    refused = run("ask", "Which river?", "--refine", 3, code=2)
    assert "--refine needs a gist, got 3 without" in " ".join(refused.output.split())
    (gist / "gist.safetensors").write_bytes(b"damaged")
    assert list(run_json("check", gist, code=1)["damaged"]) == [str(gist / "gist.safetensors")]
