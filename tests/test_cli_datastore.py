"""`memograft datastore`, end to end with the bundled model: learning files, removing sources, and early errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from memograft import Datastore
from memograft.cli.app import app
from memograft.cli.examples import read_examples

LINES = [
    {"prompt": "What is the capital of France?", "answer": "Paris, of course!", "id": "france"},
    {"question": "What is the capital of Japan?", "answer": "Tokyo, of course!", "id": "japan", "metadata": {"n": 1}},
    {"messages": [{"role": "user", "content": "What is the capital of Italy?"}], "answer": "Rome, of course!"},
    {"question": "Where?", "documents": ["The capital of Velmora is Torstad."], "answer": "Torstad.", "id": "velmora"},
]


def run(*args: object, code: int = 0) -> Any:
    result = CliRunner(env={"COLUMNS": "140"}).invoke(app, ["datastore", *map(str, args)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def run_json(*args: object, code: int = 0) -> dict[str, Any]:
    """The result of `--json`, which must be the only output on stdout."""
    lines = run(*args, "--json", code=code).stdout.splitlines()
    assert len(lines) == 1
    told: dict[str, Any] = json.loads(lines[0], parse_constant=pytest.fail)
    return told


def jsonl(path: Path, *items: Any) -> Path:
    path.write_text("".join(f"{json.dumps(item)}\n\n" for item in items), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "egypt.md").write_text("# Egypt\n\nThe capital of Egypt is Cairo.")
    (folder / "broken.txt").write_bytes(b"\xff\xff\xff")
    jsonl(folder / "more.jsonl", {"text": "The river of Egypt is the Nile.", "id": "nile"})
    return [jsonl(tmp_path / "lines.jsonl", *LINES), folder]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    run("build", jsonl(folder / "lines.jsonl", *LINES), "--out", folder / "store")
    return folder / "store"


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    """A copy that the test may change."""
    with Datastore.open(built, read_only=True) as opened:
        return opened.save(tmp_path / "store")


def test_build_goes_on_where_it_was(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "store"
    first = run_json("build", files[0], "--out", out, "--index", "sq8", "--place", "head_input", "--batch-size", 2)
    assert (first["added"], first["already"], first["sources"]) == (4, 0, 4)
    assert (first["place"], first["index"]) == ("head_input", "sq8")
    second = run("build", *files, "--out", out, "--index", "sq8", "--place", "head_input")
    assert second.stdout.startswith("learned 2 examples, 4 were there already; ")
    assert f"entries of 6 sources in {out}" in second.stdout
    assert "broken.txt must be UTF-8 text" in second.stderr
    with Datastore.open(out, read_only=True) as store:
        assert {"france", "japan", "velmora", "sub/egypt.md", "nile"} < set(store.ids())
        about = {source.id: source for source in map(store.source, range(6))}
    assert about["sub/egypt.md"].metadata == {"source": "sub/egypt.md", "title": "Egypt"}
    assert about["japan"].metadata == {"n": 1}
    assert about["velmora"].prompt == "Where?"
    error = run_json("build", files[0], "--out", out, code=1)
    assert error["type"] == "ModelMismatchError"
    assert "asked for 'ffn_input' and 'flat'" in error["error"]


def test_info_tells_what_the_disk_holds(built: Path) -> None:
    told = run_json("info", built, "--ids")
    with Datastore.open(built, read_only=True) as store:
        header = store.header
        assert told["entries"] == len(store) == sum(source["entries"] for source in told["ids"])
        assert [source["id"] for source in told["ids"]] == store.ids()
    assert (told["sources"], told["deleted"]) == (4, {"entries": 0, "sources": 0})
    assert (told["fingerprint"], told["dimension"], told["dtype"]) == (header.fingerprint, header.dimension, "float32")
    assert (told["temperature"], told["gate"]) == (header.calibration["temperature"], header.calibration["gate"])
    assert told["bytes"] == sum(file.stat().st_size for file in built.iterdir())
    assert "ids" not in run_json("info", built)
    shown = run("info", built, "--ids").stdout
    for word in ("ffn_input, D=192, float32", "flat", "kB", "plain distances", "japan", "Tokyo, of course!"):
        assert word in shown


def test_info_needs_neither_torch_nor_faiss(built: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from memograft.cli.app import app; "
        f"assert not CliRunner().invoke(app, ['datastore', 'info', {str(built)!r}]).exit_code; "
        "print([m for m in ('torch', 'transformers', 'faiss') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_add_and_rm(store: Path, tmp_path: Path) -> None:
    entries = run_json("info", store)["entries"]
    more = jsonl(tmp_path / "more.jsonl", LINES[0], {"text": "The river of Egypt is the Nile.", "id": "nile"})
    added = run_json("add", store, more)
    assert (added["added"], added["already"], added["sources"]) == (1, 1, 5)
    assert added["entries"] > entries
    removed = run_json("rm", store, "nile", "japan")
    assert (removed["removed"], removed["sources"], removed["compacted"]) == (2, 3, False)
    told = run_json("info", store)
    assert told["deleted"] == {"entries": removed["entries_removed"], "sources": 2}
    assert told["entries"] == removed["entries"]
    assert "2 sources, " in run("info", store).stdout
    assert "removed 0 sources with 0 entries" in run("rm", store, "--compact").stdout
    compacted = run_json("info", store)
    assert (compacted["entries"], compacted["deleted"]["entries"]) == (removed["entries"], 0)
    assert compacted["bytes"] < told["bytes"]


def test_rm_of_what_is_not_there(store: Path) -> None:
    error = run_json("rm", store, "japan", "nope", "no", code=1)
    assert error["type"] == "SettingsError"
    assert "has no source 'nope', 'no', so nothing was removed" in error["error"]
    assert "info" in error["error"]
    assert run_json("info", store)["sources"] == 4
    removed = run_json("rm", store, "japan", "nope", "--missing-ok")
    assert (removed["removed"], removed["missing"], removed["sources"]) == (1, ["nope"], 3)


def test_a_source_that_says_something_else_now_is_told_and_left(store: Path, tmp_path: Path) -> None:
    changed = jsonl(tmp_path / "changed.jsonl", {**LINES[1], "answer": "Kyoto."})
    result = run("add", store, changed)
    assert "1 sources have changed since they were learned" in result.stderr
    assert "the first: japan" in result.stderr
    assert run_json("add", store, changed)["changed"] == ["japan"]
    with Datastore.open(store, read_only=True) as opened:
        assert "Kyoto." not in {opened.source(n).text for n in range(4)}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "x"}', "bad.jsonl, line 2 needs a text to learn from, got None; give a prompt and its `answer`"),
        ('{"answer": "x"}', "bad.jsonl, line 2 needs a text to learn from, got None"),
        ("{oops", "bad.jsonl, line 2 must be a JSON object, but: Expecting property name"),
        ("3", "bad.jsonl, line 2 must be (prompt, answer), (messages, answer),"),
        ('{"messages": "hello", "answer": "x"}', "the messages of"),
        ('{"prompt": "x", "answer": "y", "documents": "z"}', "bad.jsonl, line 2: `documents` must be a list, got one"),
        ('{"text": "half \\ud800"}', "bad.jsonl, line 2 must hold text, but: "),
        ('{"text": "NaN", "metadata": {"n": NaN}}', "line 2 must be JSON, but: "),
        ('{"text": "another", "id": "one"}', "line 2 has the id 'one' of"),
    ],
)
def test_a_bad_line_is_named_before_a_model_is_loaded(line: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(f'{{"text": "The first.", "id": "one"}}\n{line}\n')
    error = run_json("build", file, "--out", tmp_path / "store", "--model", tmp_path / "no-model", code=1)
    assert error["type"] == "SettingsError"
    assert said in error["error"]
    assert "bad.jsonl, line 2" in error["error"]
    assert not (tmp_path / "store").exists()


def test_files_that_cannot_be_examples(tmp_path: Path) -> None:
    def refused(*paths: Path) -> str:
        error: str = run_json("build", *paths, "--out", tmp_path / "store", "--model", "no-model", code=1)["error"]
        return error

    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("a,b")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xff")
    (tmp_path / "none.jsonl").write_text("\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "bad.txt").write_bytes(b"\xff\xff")
    assert "there is nothing to learn from; name jsonl, txt" in refused(tmp_path / "empty")
    assert "there is nothing to learn from" in refused(tmp_path / "none.jsonl")
    assert "table.csv must be one of .docx, .htm, .html, .jsonl, " in refused(tmp_path / "table.csv")
    assert "bytes.jsonl must be UTF-8 text, and is not at byte 0" in refused(tmp_path / "bytes.jsonl")
    assert "bad.txt must be UTF-8 text" in refused(tmp_path / "docs")
    assert "bad.txt must be UTF-8 text" in refused(
        jsonl(tmp_path / "good.jsonl", *LINES), tmp_path / "docs" / "bad.txt"
    )
    assert "is neither a file nor a folder" in refused(tmp_path / "nowhere")


def test_a_line_that_is_too_long_is_named_and_the_others_are_learned(tmp_path: Path) -> None:
    lines = [*LINES, {"prompt": "word " * 2000, "answer": "x"}]
    error = run_json("build", jsonl(tmp_path / "long.jsonl", *lines), "--out", tmp_path / "store", code=1)
    assert error["type"] == "PromptTooLongError"
    assert f"{tmp_path / 'long.jsonl'}, line 9: the example " in error["error"]
    again = run_json("build", jsonl(tmp_path / "short.jsonl", *LINES), "--out", tmp_path / "store")
    assert again["sources"] == 4


def test_conversations_are_examples_of_every_turn_of_the_assistant(tmp_path: Path) -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Capital of France?"},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "Of Japan?"},
        {"role": "assistant", "content": "Tokyo.\u2028"},
    ]
    file = tmp_path / "talk.jsonl"
    file.write_text(json.dumps({"messages": talk, "id": "talk"}, ensure_ascii=False), encoding="utf-8")
    found = read_examples([file, file])
    assert [item["id"] for item in found.items] == ["talk#0", "talk#1"], "what is said twice is learned once"
    assert [(len(item["messages"]), item["answer"]) for item in found.items] == [(2, "Paris."), (4, "Tokyo.\u2028")]
    assert found.places["talk#1"] == f"{file}, line 1"
    nothing_said = jsonl(tmp_path / "asked.jsonl", {"messages": talk[:2]})
    assert "line 1 needs a text" in run_json("build", nothing_said, "--out", tmp_path / "s", code=1)["error"]


@pytest.mark.parametrize("command", [("info",), ("rm", "an-id"), ("add", "lines.jsonl"), ("rm", "--compact")])
def test_where_there_is_no_datastore(command: tuple[str, ...], tmp_path: Path) -> None:
    name, *rest = command
    error = run_json(name, tmp_path / "nowhere", *rest, code=1)
    assert error["type"] == "StoreError"
    assert "there is no datastore at " in error["error"]
    assert "memograft datastore build FILE... --out" in error["error"]
    assert not (tmp_path / "nowhere").exists()


def test_a_damaged_datastore_is_one_line(store: Path) -> None:
    (store / "values-0.i32").write_bytes(b"")
    for command in (("info",), ("rm", "japan")):
        result = run(command[0], store, *command[1:], code=1)
        assert result.stdout == ""
        assert "values-0.i32 cannot be used as a datastore's file: it must have" in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "args",
    [
        ("build", "x.jsonl"),
        ("build", "--out", "s"),
        ("build", "x.jsonl", "--out", "s", "--index", "ivf"),
        ("build", "x.jsonl", "--out", "s", "--place", "head"),
        ("build", "x.jsonl", "--out", "s", "--stride", "0"),
        ("add", "s"),
        ("rm", "s"),
        ("info",),
        ("nonsense",),
    ],
)
def test_wrong_usage_is_2(args: tuple[str, ...]) -> None:
    run(*args, code=2)


def test_rm_of_nothing_says_what_to_name() -> None:
    assert "name at least one ID to remove, or --compact" in run("rm", "s", code=2).stderr
