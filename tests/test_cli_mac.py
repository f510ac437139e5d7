"""`memograft train mac`, `memograft mac` and `memograft ask --mac`, with a random model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from test_cli import docs, model, run, run_json  # noqa: F401
from test_cli_train import data  # noqa: F401

SHORT = ("--tokens", 2, "--window", 128, "--steps", 4, "--groups", 2, "--rank", 2, "--blocks", 1, "--every", 2)


@pytest.fixture
def mac(model: str, data: Path, tmp_path: Path) -> Path:  # noqa: F811
    run("train", "mac", "--model", model, "--data", data, *SHORT, "--out", tmp_path / "mac")
    return tmp_path / "mac"


def test_an_interrupted_run_continues(model: str, data: Path, tmp_path: Path) -> None:  # noqa: F811
    arguments = ("train", "mac", "--model", model, "--data", data, "--held-out", data, *SHORT, "--stop-gradient", 0.5)
    arguments += ("--shown", 0.5, "--point", 0.5, "--others", 3)
    whole = run_json(*arguments, "--out", tmp_path / "whole")
    assert (whole["steps"], [score["step"] for score in whole["scores"]]) == (4, [2, 4])
    assert set(whole["scores"][0]) == {"step", "bank", "own", "none", "bank_loss", "own_loss", "none_loss"}
    part = run_json(*arguments, "--out", tmp_path / "parts", "--stop-at", 2)
    assert part["steps"] == 2
    last = run_json(*arguments, "--out", tmp_path / "parts")
    same = ("steps", "tokens_seen", "loss", "scores")
    assert [last[name] for name in same] == [whole[name] for name in same]
    for name in ("mac.json", "mac.safetensors", "adapter_model.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert "4 of 4 steps" in run(*arguments, "--out", tmp_path / "whole").output


def test_a_run_begins_with_a_gist_or_a_mac(model: str, data: Path, mac: Path, tmp_path: Path) -> None:  # noqa: F811
    common = ("--model", model, "--data", data, "--tokens", 2, "--window", 128, "--rank", 2, "--steps", 2)
    gist = tmp_path / "gist"
    run("train", "gist", *common, "--out", gist)
    again = ("train", "mac", *common, "--blocks", 1, "--groups", 2)
    assert run_json(*again, "--start", mac, "--out", tmp_path / "a")["steps"] == 2
    assert run_json(*again, "--start", gist, "--imitate", 1, "--out", tmp_path / "b")["steps"] == 2
    lora = (*again, "--modulation", "lora", "--start", mac)
    assert run_json(*lora, "--out", tmp_path / "lora")["steps"] == 2
    refused = run_json(*lora, "--imitate", 1, "--out", tmp_path / "e", code=1)
    assert "`imitate` is for keys and values, and a LoRA has none, got 1.0; set it to 0" in refused["error"]
    refused = run_json(*again, "--modulation", "both", "--out", tmp_path / "f", code=1)
    assert "`modulation` must be one of prefix, lora, got 'both'" in refused["error"]
    refused = run_json(*again, "--heads", 7, "--out", tmp_path / "g", code=1)
    assert "`heads` must divide the model's width" in refused["error"]
    refused = run_json(*again, "--heads", 2, "--start", mac, "--out", tmp_path / "h", code=1)
    assert f"`start` must have the same `heads`, and {mac} has 1, got 2; set it to 1" in refused["error"]
    refused = run_json(*again, "--imitate", 1, "--out", tmp_path / "c", code=1)
    assert "`imitate` needs a gist, got none; start with one" in refused["error"]
    other = ("train", "mac", "--model", model, "--data", data, "--tokens", 2, "--window", 128, "--rank", 3)
    refused = run_json(*other, "--start", gist, "--out", tmp_path / "d", code=1)
    assert "`start` must have the same `rank`, `tokens` and `blocks`" in refused["error"]


def test_files_are_added_asked_and_removed(model: str, docs: Path, mac: Path, tmp_path: Path) -> None:  # noqa: F811
    bank, files = tmp_path / "bank", sorted(file for file in docs.rglob("*") if file.is_file())
    names = [file.relative_to(docs).as_posix() for file in files]
    assert "make a bank with MacBank" in run_json("mac", "add", bank, docs, "--model", model, code=1)["error"]
    made = run_json("mac", "add", bank, docs, "--mac", mac, "--model", model)
    assert made["added"] == made["documents"] == len(files)
    assert run_json("mac", "add", bank, docs, "--model", model)["added"] == 0
    files[0].write_text("Something else stands here now.")
    assert run_json("mac", "add", bank, docs, "--model", model)["added"] == 1
    about = run_json("mac", "info", bank)
    assert sorted(about["documents"]) == sorted(file.relative_to(docs).as_posix() for file in files)
    assert (about["modulations"], about["merged"], about["tokens"]) == (len(files), 0, 2)
    assert f"{len(files)} documents" in run("mac", "info", bank).output
    assert run_json("check", bank)["kind"] == "bank of MAC"
    assert run_json("check", mac)["kind"] == "mac"
    arguments = ("ask", "Which river?", "--model", model, "-k", 0, "--max-new-tokens", 4, "--memory", "--mac", bank)
    assert run_json(*arguments)["memorized"]["text"]
    assert "nothing is memorized with --mac, got --rank" in run(*arguments, "--rank", 3, code=2).output
    assert run_json("mac", "rm", bank, names[0])["removed"] == 1
    assert run_json("mac", "add", bank, docs, "--model", model, "--most", 1)["added"] == 1
    assert run_json("mac", "info", bank)["modulations"] == 1
    refused = run_json("mac", "rm", bank, names[0], code=1)
    assert "was merged with" in refused["error"]
    (mac / "mac.safetensors").write_bytes(b"damaged")
    assert list(run_json("check", mac, code=1)["damaged"]) == [str(mac / "mac.safetensors")]
    about_file = bank / "mac_bank.json"
    about_file.write_text(json.dumps({"format": 9}))
    assert "is damaged" in run_json("mac", "info", bank, code=1)["error"]


def test_a_bank_is_evaluated_alone_and_beside_documents(model: str, data: Path, mac: Path, tmp_path: Path) -> None:  # noqa: F811
    bank, page = tmp_path / "bank", tmp_path / "page.txt"
    page.write_text("The river of Velmora is the Traikan.")
    run("mac", "add", bank, page, "--mac", mac, "--model", model)
    arguments = ("eval", data, "--model", model, "--max-new-tokens", 4, "--out", tmp_path / "eval", "--mac", bank)
    result = json.loads(run(*arguments).stdout.splitlines()[-1])
    assert list(result["results"]) == ["plain", f"mac {bank}", f"mac {bank}, documents"]
    alone, beside = (result["settings"][name] for name in list(result["results"])[1:])
    assert (alone["documents"], beside["documents"]) == (False, True)
    assert alone["memory"]["bank"] == str(bank)
    page.write_text("The mayor of Velmora is Mila.")
    run("mac", "add", bank, page, "--mac", mac, "--model", model)
    changed = json.loads(run(*arguments).stdout.splitlines()[-1])["settings"][f"mac {bank}"]
    assert changed["bank"] != alone["bank"], "stored answers are those of this bank"
    assert "make a bank with MacBank" in run("eval", data, "--model", model, "--mac", tmp_path, code=1).output
