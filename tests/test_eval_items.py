"""Files of questions: how they are read, and the errors for wrong formats."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from memograft.documents import Document
from memograft.errors import SettingsError
from memograft.evaluation.items import Item, read_items, sets_of, world

GOOD = {"question": "Who?", "documents": ["Ada did."], "answer": "Ada"}


def written(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_the_least_that_a_line_needs(tmp_path: Path) -> None:
    (item,) = read_items(written(tmp_path / "q.jsonl", GOOD))
    assert item == Item("1", "all", "Who?", (Document("Ada did."),), ("Ada",))


def test_everything_that_a_line_may_have(tmp_path: Path) -> None:
    full = {
        "id": "q7", "set": "mine", "question": "Who?", "answers": ["Ada", "Lovelace"], "belief": "Bob", "other": "Eve",
        "documents": [{"text": "Ada did.", "id": "a", "metadata": {"page": 3}}, "Eve did."], "frame": "It was",
        "kind": "x", "group": "g", "query": "Who", "note": "passed over",
    }  # fmt: skip
    (item,) = read_items(written(tmp_path / "q.jsonl", full))
    documents = (Document("Ada did.", "a", {"page": 3}), Document("Eve did."))
    assert item == Item("q7", "mine", "Who?", documents, ("Ada", "Lovelace"), "Bob", "Eve", "It was", "x", "g", "Who")


def test_blank_lines_a_byte_order_mark_and_gzip(tmp_path: Path) -> None:
    text = "\ufeff" + json.dumps(GOOD) + "\r\n\r\n" + json.dumps(GOOD) + "\r\n"
    (tmp_path / "q.jsonl").write_bytes(text.encode())
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert [i.id for i in read_items(tmp_path / "q.jsonl")] == ["1", "3"]
    assert read_items(tmp_path / "q.jsonl.gz") == read_items(tmp_path / "q.jsonl")


def test_the_first_n_of_each_set(tmp_path: Path) -> None:
    lines = [GOOD | {"set": name, "id": f"{name}{n}"} for n in range(3) for name in "ba"]
    items = read_items(written(tmp_path / "q.jsonl", *lines), 2)
    assert [i.id for i in items] == ["b0", "b1", "a0", "a1"]
    assert sets_of(items) == ["b", "a"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"question": ', "line 2: a line must be one JSON object (Expecting value"),
        (b"[" * 100_000, "line 2: a line must be one JSON object"),
        (b'["Who?"]', 'line 2: a line must be one JSON object, got ["Who?"]; write {"question": ...}'),
        (b'{"question": "caf\xe9"}', "line 2: a line must be UTF-8, got byte 0xe9; save the file as UTF-8"),
        (b'{"answer": "x"}', "line 2: a line needs the field `question`, got `answer`; add it"),
        (b"{}", "line 2: a line needs the field `question`, got no field at all; add it"),
        (b'{"question": 3}', "line 2: `question` must be a string, got 3; put it in quotation marks"),
        (b'{"question": " "}', "line 2: `question` must not be empty, got ' '; fill it in, or leave the line out"),
        (b'{"question": "a", "answer": "b"}', "line 2: a line needs the field `documents`"),
        (b'{"question": "a", "documents": []}', "line 2: `documents` must be a list of at least one, got []; write"),
        (b'{"question": "a", "documents": "b"}', 'line 2: `documents` must be a list of at least one, got "b"; write'),
        (b'{"question": "a", "documents": [5]}', "line 2: `documents` must hold strings or objects with `text`"),
        (b'{"question": "a", "documents": [{"text": "b", "metadata": 5}]}', "line 2: `documents` must hold strings or"),
        (b'{"question": "a", "documents": [" "]}', "line 2: `documents` must hold text, got an empty one; leave"),
        (b'{"question": "a", "documents": ["b"]}', "line 2: a line needs the field `answer`"),
        (b'{"question": "a", "documents": ["b"], "answer": ["c"]}', 'line 2: `answer` must be a string, got ["c"]'),
        (b'{"question": "a", "documents": ["b"], "answers": []}', "line 2: `answers` must be a list of strings, none"),
        (b'{"question": "a", "documents": ["b"], "answers": ["c"], "answer": "c"}', "line 2: a line has `answer` or"),
        (b'{"question": "a", "documents": ["b"], "answer": "c", "belief": null}', "`belief` must be a string, got nul"),
    ],
    ids=range(19),
)  # fmt: skip
def test_a_line_that_is_wrong(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    with pytest.raises(SettingsError, match=re.escape(said)) as caught:
        read_items(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert len(str(caught.value)) < 400


def test_a_file_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is no file .*none\.jsonl; name a \.jsonl or \.json file"):
        read_items(tmp_path / "none.jsonl")
    with pytest.raises(SettingsError, match="must hold at least one question, got an empty file; write one JSON"):
        read_items(written(tmp_path / "empty.jsonl"))
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode())[:-9])
    with pytest.raises(SettingsError, match=r"must be a whole gzip file, got a damaged one .*; pack it again"):
        read_items(tmp_path / "torn.jsonl.gz")
    written(tmp_path / "plain.jsonl.gz", GOOD)
    with pytest.raises(SettingsError, match="must be a whole gzip file"):
        read_items(tmp_path / "plain.jsonl.gz")
    with pytest.raises(SettingsError, match=r"`split` must be one of \('test', 'tune'\), got 'train'"):
        world("train")
