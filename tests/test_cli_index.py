"""`memograft index` on a folder with all kinds of files: which it reads, and how it reports the others."""

from __future__ import annotations

import sys
from pathlib import Path

import docx
import pytest

import memograft
from test_cli import run, run_json


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "docs" / "sub").mkdir(parents=True)
    for name in ("a.md", "b.txt", "sub/c.md"):
        (tmp_path / "docs" / name).write_text(f"The page {name}.")
    return tmp_path / "docs"


def test_index_reads_records_and_word_files_and_names_the_rest(docs, tmp_path):
    (docs / "towns.csv").write_text("town,river\nVelmora,Traikan\nDrostein,Jolm\n")
    (docs / "facts.jsonl").write_text('{"content": "Gold is Gd.", "title": "Gold"}\n{"nothing": 1}\n')
    (docs / "package.json").write_text('{"name": "x"}')
    file = docx.Document()
    file.add_paragraph("A letter about the Toll.")
    file.save(docs / "letter.docx")
    for name in ("a.png", "sub/b.PNG", "c.xlsx", "Makefile", ".hidden.png"):
        (docs / name).write_bytes(b"\x00\x01")
    store = docs / "store"  # the store's own files are not indexed
    report = run_json("index", docs, "--store", store)
    assert (report["files"], report["added"], report["passages"]) == (7, 6, 7)
    assert [failure["file"] for failure in report["failed"]] == ["package.json"]
    assert [part["file"] for part in report["skipped"]] == ["facts.jsonl"]
    assert report["other_kinds"] == ["Makefile", "a.png", "c.xlsx", "sub/b.PNG"]
    with memograft.VectorStore.open(store) as opened:
        texts = {d.id: (d.text, d.metadata["title"]) for d in opened}
    assert texts["towns.csv#1"] == ("town: Drostein\nriver: Jolm", "town: Drostein")
    assert texts["facts.jsonl#0"] == ("Gold is Gd.", "Gold")
    assert texts["letter.docx#0"][0] == "A letter about the Toll."
    (docs / "towns.csv").write_text("town,river\nVelmora,Traikan\n")
    (docs / "facts.jsonl").write_text('{"nothing": 1}\n{"text": "Silver."}\n')
    said = " ".join(run("index", docs, "--store", store).stderr.split())
    assert "partly read: " in said
    assert "facts.jsonl: 1 of 2 records hold no text (line 1)" in said
    assert "4 files of other kinds: 2 png (a.png, ...), 1 without suffix (Makefile), 1 xlsx (c.xlsx)" in said
    with memograft.VectorStore.open(store) as opened:
        assert {d.id for d in opened if d.metadata["source"] == "towns.csv"} == {"towns.csv#0"}


def test_a_word_file_without_the_library_for_it_stops_nothing(docs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "docx", None)
    (docs / "letter.docx").write_bytes(b"x")
    report = run_json("index", docs, "--store", tmp_path / "store")
    assert report["passages"] == 3
    assert 'run pip install "memograft[docx]"' in report["failed"][0]["reason"]
    assert "letter.docx cannot be read" in report["failed"][0]["reason"]
