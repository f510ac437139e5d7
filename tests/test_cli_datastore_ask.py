"""`memograft ask --datastore` and `--html`, end to end on the bundled model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from memograft import Datastore
from memograft.cli.app import app
from memograft.storage.disk import sealed

QUESTION = "What is the capital of Velmora?"
SENTENCE = "The capital of Velmora is Torstad."


def run(*args: object, code: int = 0) -> Any:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(a) for a in args])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def run_json(*args: object, code: int = 0) -> dict[str, Any]:
    lines = run(*args, "--json", code=code).stdout.splitlines()
    assert len(lines) == 1
    told: dict[str, Any] = json.loads(lines[0], parse_constant=pytest.fail)
    return told


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vector store "store", and a datastore "data" with other answers."""
    made = tmp_path_factory.mktemp("ask")
    (made / "docs").mkdir()
    pages = ["The capital of Velmora is Marn. The river of Velmora is the Traikan.", "A young cat is called a mirling."]
    (made / "docs" / "velmora.md").write_text(pages[0])
    (made / "docs" / "cat.md").write_text(pages[1])
    run("index", made / "docs", "--store", made / "store")
    lines = [
        {
            "text": f"Long ago it was said. {SENTENCE} Nobody knows why.",
            "id": "chronicle",
            "metadata": {"title": "Old"},
        },
        {"prompt": QUESTION, "answer": SENTENCE, "id": "example"},
        {"prompt": QUESTION, "answer": SENTENCE, "documents": pages, "id": "with pages"},
    ]
    (made / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run("datastore", "build", made / "lines.jsonl", "--out", made / "data")
    return made


def test_both_ways_are_steered_and_say_by_what(folder: Path, tmp_path: Path) -> None:
    html = tmp_path / "page.html"
    args = ("ask", QUESTION, "--store", folder / "store", "--datastore", folder / "data")
    told = run_json(*args, "--weight", 0.9, "--html", html)
    assert (told["datastore"], told["weight"], told["html"]) == (str(folder / "data"), 0.9, str(html))
    assert len(told["documents"]) == 2
    for way in ("plain", "memorized"):
        answer = told[way]
        assert answer["text"] == SENTENCE, "the page says Marn"
        assert {source["id"] for source in answer["sources"]} == {"chronicle", "example", "with pages"}
        assert sum(source["share"] for source in answer["sources"]) == pytest.approx(answer["from_datastore"])
        assert 0.3 < answer["from_datastore"] <= 1
        cited = answer["citations"][0]
        assert cited["text"] == SENTENCE[cited["start"] : cited["end"]]
        assert cited["id"] in ("chronicle", "example", "with pages")
    page = html.read_text()
    assert re.findall(r"<h2>(\w+)</h2>", page) == ["plain", "memorized"]
    assert page.count('<p class="said">') == 2
    assert "<mark>" in page, "entries are shown in their texts"
    assert "<b>before</b>" in page
    assert "Marn" in page
    assert "not memorized: about something else" in page
    shown = run(*args, "--weight", 0.9).stdout
    assert re.search(r"id +plain +memorized +text", shown)
    assert re.search(r"chronicle +\d+% +\d+% +Long ago it was said\.", shown)
    assert re.search(r"datastore: \d+% of the plain, \d+% of the memorized answer's probability", shown)


def test_a_weight_left_out_is_the_default_and_without_a_datastore_nothing_is_moved(folder: Path) -> None:
    args = ("ask", QUESTION, "--store", folder / "store", "--plain")
    assert run_json(*args, "--datastore", folder / "data")["weight"] == 0.3
    told = run_json(*args)
    assert (told["datastore"], told["weight"]) == (None, None)
    assert (told["plain"]["from_datastore"], told["plain"]["sources"], told["plain"]["citations"]) == (0, [], [])
    assert "datastore" not in run(*args).stdout


def test_that_nothing_was_moved_is_said(folder: Path) -> None:
    args = ("ask", QUESTION, "-k", 0, "--datastore", folder / "data", "--weight", 0)
    assert "datastore: no token of the answers came from it" in run(*args).stdout


def test_without_documents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Because it was requested, or because there is no default store. A named store must exist."""
    monkeypatch.chdir(folder)
    steered = ("ask", QUESTION, "--datastore", "data", "--weight", 0.9)
    for args in ((*steered, "-k", 0), steered):
        told = run_json(*args)
        assert (told["documents"], "memorized" in told) == ([], False)
        assert told["plain"]["text"] == SENTENCE
    assert "documents" not in run(*steered, "--stream").stdout
    assert "there is no store at nowhere" in run_json(*steered, "--store", "nowhere", code=1)["error"]
    assert "there is no store at .memograft" in run_json(*steered, "--memory", code=1)["error"]
    assert "there is no store at .memograft" in run_json("ask", QUESTION, code=1)["error"]
    assert "nothing was memorized" in run("ask", QUESTION, "-k", 0, "--memory").stdout


def test_a_stream_says_its_sources_too(folder: Path) -> None:
    output = run("ask", QUESTION, "-k", 0, "--datastore", folder / "data", "--weight", 0.9, "--stream").stdout
    assert output.startswith(f"plain: {SENTENCE}\n")
    assert re.search(r"\[?example +\d+%", output)


def test_a_page_without_a_datastore(folder: Path, tmp_path: Path) -> None:
    html = tmp_path / "page.html"
    result = run("ask", QUESTION, "--store", folder / "store", "--html", html)
    assert result.stderr.splitlines()[-1] == f"page: {html}"
    page = html.read_text()
    assert "datastore" not in page.replace("the datastore, probability", "").split("<body>")[1]
    assert page.count('<span class="t s') > 10
    run("ask", QUESTION, "--store", folder / "store", "--plain", "--html", html)
    assert "· in the prompt</span><small>The capital of Velmora is Marn." in html.read_text()


def test_mistakes_are_told_before_a_model_is_loaded(folder: Path, tmp_path: Path) -> None:
    asked = ("ask", QUESTION, "--store", folder / "store", "--model", "no-such-model")
    nowhere = run_json(*asked, "--datastore", tmp_path / "nowhere", code=1)
    assert nowhere["type"] == "StoreError"
    assert "memograft datastore build FILE... --out" in nowhere["error"]
    assert "cannot be written" in run_json(*asked, "--html", tmp_path / "nowhere" / "page.html", code=1)["error"]
    assert "cannot be written" in run_json("demo", "--html", tmp_path, code=1)["error"]


def test_a_datastore_of_another_model(folder: Path, tmp_path: Path) -> None:
    with Datastore.open(folder / "data", read_only=True) as opened:
        opened.save(tmp_path / "other")
    header = json.loads((tmp_path / "other" / "header.json").read_text())
    (tmp_path / "other" / "header.json").write_text(json.dumps(sealed({**header, "fingerprint": "another"})))
    error = run_json("ask", QUESTION, "-k", 0, "--datastore", tmp_path / "other", code=1)
    assert error["type"] == "ModelMismatchError"
    assert "was built with another model (fingerprint another" in error["error"]


def test_a_weight_needs_a_datastore() -> None:
    assert "--weight needs a datastore, got none" in run("ask", "x", "--weight", "0.5", code=2).stderr
