"""Reading of files of records: which field is the text, what is skipped, and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memograft.errors import SettingsError
from memograft.passages.reading import Text
from memograft.passages.records import FIELDS, Records, read_records


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def texts(records: Records) -> list[str]:
    return [text.text for text in records.texts]


@pytest.mark.parametrize("field", FIELDS)
def test_the_text_of_a_record_is_a_field_with_a_usual_name(tmp_path: Path, field: str) -> None:
    path = written(tmp_path / "a.jsonl", json.dumps({"id": 3, field: "The Toll.", "title": "Rivers"}))
    assert read_records(path) == Records((Text("Rivers", "The Toll."),))


def test_the_first_field_that_holds_a_text_counts(tmp_path: Path) -> None:
    records = [{"body": "b", "text": "t"}, {"text": " ", "content": "c"}, {"text": None, "body": "b"}, "s"]
    path = written(tmp_path / "a.json", json.dumps(records))
    assert texts(read_records(path)) == ["t", "c", "b", "s"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([{"text": "a"}, {"text": "b"}], ["a", "b"]),
        ({"text": "a", "tags": ["x"]}, ["a"]),
        ({"version": 2, "data": [{"text": "a"}, {"text": "b"}]}, ["a", "b"]),
        ("a", ["a"]),
    ],
)
def test_shapes_of_json(tmp_path: Path, value: object, expected: list[str]) -> None:
    assert texts(read_records(written(tmp_path / "a.json", json.dumps(value)))) == expected


def test_records_without_text_are_counted_and_placed(tmp_path: Path) -> None:
    lines = ['{"text": "a"}', "", '{"note": "b"}', "{damaged", '{"text": 3}', "[1]", '{"text": "c\u2028d"}']
    found = read_records(written(tmp_path / "a.jsonl", "\r\n".join(lines)))
    assert texts(found) == ["a", "c\u2028d"]
    assert found.skipped.startswith(
        "4 of 6 records hold no text (line 3, line 4, which is no JSON, line 5, ...): none of"
    )


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_rows_of_csv_are_their_cells(tmp_path: Path, separator: str) -> None:
    rows = [["Town", "River", "Title"], ["Velmora", "the Traikan", ""], ["", "", ""], ["Drostein", "", "About it"]]
    path = written(tmp_path / "a.csv", "\n".join(separator.join(row) for row in rows))
    assert read_records(path).texts == (
        Text("Town: Velmora", "Town: Velmora\nRiver: the Traikan"),
        Text("About it", "Town: Drostein\nTitle: About it"),
    )


def test_a_column_of_text_is_the_text(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", '\ufeffid,Text\n1,"Two\nlines, quoted ""so""."\n2,\n3,a,b\n4,d\n')
    found = read_records(path)
    assert texts(found) == ['Two\nlines, quoted "so".', "d"]
    assert found.skipped.startswith("2 of 4 records hold no text (row 3, row 4, which has more cells than the header)")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", "{", r"must be JSON, and is not \(.*line 1 column 2"),
        ("a.json", "[" * 100_000, "must be JSON, and is not"),
        (
            "a.json",
            '{"name": "x", "version": 1}',
            r"must contain records .* `text`, `content`, .* and none of its 1 has",
        ),
        ("a.json", "[]", "none of its 0 has"),
        ("a.jsonl", "no\njson", "none of its 2 has"),
        ("a.jsonl", b'{"text": "caf\xe9"}', "must be UTF-8 text, and is not at byte 13"),
        ("a.csv", "", "none of its 0 has"),
        ("a.csv", "text\n", "none of its 0 has"),
        ("a.csv", 'text\n"open', "must be CSV, and is not"),
        ("a.csv", "text\n" + "x" * 200_000, "must be CSV, and is not"),
    ],
)
def test_files_that_hold_nothing_are_named(tmp_path: Path, name: str, data: str | bytes, message: str) -> None:
    path = written(tmp_path / name, data)
    with pytest.raises(SettingsError, match=message) as caught:
        read_records(path)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be opened"):
        read_records(tmp_path / "none.csv")
