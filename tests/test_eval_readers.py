"""Public question sets: each published format, compressed or not, recognised by its fields."""

from __future__ import annotations

import gzip
import json
import lzma
import re
from pathlib import Path
from typing import Any

import pytest

from memograft.errors import MissingExtraError, SettingsError
from memograft.evaluation.files import entries
from memograft.evaluation.hub import from_hub, is_hub_id
from memograft.evaluation.items import Item
from memograft.evaluation.readers import FORMATS, read
from memograft.evaluation.readers.formats import recognised
from memograft.evaluation.readers.nqswap import TABLE
from memograft.evaluation.readers.squad import IMPOSSIBLE

SWAP = {
    "id": 7,
    "question": "who mends the harbour clock",
    "org_context": "<P> The harbour clock is mended by Ida Brandt . </P>",
    "org_answer": ["Ida Brandt", "Brandt"],
    "sub_context": "<P> The harbour clock is mended by Otto Lund . </P>",
    "sub_answer": ["Otto Lund"],
}
PARAGRAPH = {
    "context": "The mill at Ost grinds rye.",
    "qas": [
        {"id": "a", "question": "What does the mill grind?", "answers": [{"text": "rye"}, {"text": "rye"}]},
        {"id": "b", "question": "Who owns the mill?", "answers": [], "is_impossible": True},
    ],
}
TOKENS = "<H1> Ost </H1> <P> The mill at Ost grinds rye . </P> <Table> <Tr> <Td> 12 </Td> </Tr> </Table>".split()
SPAN = {"start_token": 3, "end_token": 12}
SHORT = {"start_token": 9, "end_token": 10}


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def one(path: Path, **options: Any) -> Item:
    (item,) = read(path, split="all", **options).items
    return item


def texts(item: Item) -> list[str]:
    return [d.text for d in item.documents]


@pytest.mark.parametrize(
    "record",
    [
        SWAP,
        {
            "input": SWAP["question"],
            "context": SWAP["org_context"],
            "answer": "Ida Brandt",
            "sub_context": SWAP["sub_context"],
            "sub_answer": "Otto Lund",
        },
    ],
    ids=["published", "FastMem"],
)
def test_nq_swap(tmp_path: Path, record: dict[str, Any]) -> None:
    path = jsonl(tmp_path / "swap.jsonl", record)
    item = one(path, contexts=["contradicts"])
    assert texts(item) == ["The harbour clock is mended by Otto Lund ."]
    assert (item.question, item.query) == ("who mends the harbour clock?",) * 2
    assert (item.answers, item.belief) == (("Otto Lund",), "Ida Brandt")
    assert item.id == str(record.get("id", "line 1"))
    assert texts(one(path, contexts=["agrees"])) == ["The harbour clock is mended by Ida Brandt ."]


@pytest.mark.parametrize("field", ["org_context", "sub_context"])
def test_a_page_of_natural_questions_that_is_a_table_is_counted(tmp_path: Path, field: str) -> None:
    table = SWAP | {"question": "who sells tar", field: "<Table> <Tr> <Td> tar </Td> </Tr> </Table>"}
    reading = read(jsonl(tmp_path / "swap.jsonl", SWAP, table), contexts=["contradicts"], split="all")
    assert [i.query for i in reading.items] == ["who mends the harbour clock?"]
    assert reading.skipped == {TABLE: 1}


def test_squad_as_published(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"version": "2.0", "data": [{"title": "Ost_(mill)", "paragraphs": [PARAGRAPH]}]}))
    reading = read(path, contexts=["agrees"], split="all")
    (item,) = reading.items
    assert reading.format == "squad"
    assert reading.skipped == {IMPOSSIBLE: 1}
    assert (item.id, item.question, item.answers) == ("a", "What does the mill grind?", ("rye",))
    assert (texts(item), item.documents[0].metadata) == (["The mill at Ost grinds rye."], {"title": "Ost (mill)"})


def test_squad_as_the_hub_has_it(tmp_path: Path) -> None:
    rows = [
        {"id": q["id"], "title": "Ost", "context": PARAGRAPH["context"], "question": q["question"], "answers": answers}
        for q, answers in zip(PARAGRAPH["qas"], ({"text": ["rye", "rye"]}, {"text": []}), strict=True)
    ]
    reading = read(jsonl(tmp_path / "rows.jsonl", *rows), contexts=["agrees"], split="all")
    assert [(i.id, i.answers) for i in reading.items] == [("a", ("rye",))]
    assert reading.skipped == {IMPOSSIBLE: 1}


@pytest.mark.parametrize(
    "records",
    [
        [{"header": {"dataset": "x"}}, {"context": "[PAR] <P> Ost grinds rye. </P>", "qas": [
            {"qid": "q", "question": "what does ost grind", "answers": ["rye"]}]}],
        [{"qid": "q", "question": "what does ost grind", "context": "Ost grinds rye.", "answers": ["rye"]}],
        [{"qid": "q", "input": "what does ost grind", "context": "Ost grinds rye.", "answer": "rye"}],
        [{"qid": "q", "question": "what does ost grind", "answers": ["rye"], "ctxs": [
            {"title": "A", "text": "Other rye.", "hasanswer": True}, {"text": "Ost grinds rye.", "isgold": True}]}],
        [{"qid": "q", "question": "what does ost grind", "answers": ["rye"], "ctxs": [
            {"text": "Nothing.", "hasanswer": False}, {"text": "Ost grinds rye.", "hasanswer": True}]}],
        [{"qid": "q", "question": "what does ost grind", "answers": ["rye"], "positive_ctxs": [
            {"title": "Ost", "text": "Ost grinds rye."}, {"title": "Ost", "text": "Rye, then."}]}],
    ],
    ids=["MRQA", "MRQA's rows", "FastMem", "Lost in the Middle", "retrieved", "DPR"],
)  # fmt: skip
def test_natural_questions_as_others_pack_them(tmp_path: Path, records: list[Any]) -> None:
    item = one(jsonl(tmp_path / "nq.jsonl", *records), contexts=["agrees"])
    assert (item.id, item.question, item.answers) == ("q", "what does ost grind?", ("rye",))
    assert texts(item) == ["Ost grinds rye."]


def test_nq_open_has_no_page(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "open.jsonl", {"question": "what does ost grind", "answer": ["rye", "barley"]})
    item = one(path)
    assert (item.set, item.documents, item.answers) == ("no document", (), ("rye", "barley"))
    with pytest.raises(SettingsError, match=re.escape("(nq) must be one of ['no document'], got 'agrees'; leave it")):
        read(path, contexts=["agrees"], split="all")


@pytest.mark.parametrize(
    "record",
    [
        {"question_text": "what does ost grind", "document_text": " ".join(TOKENS),
         "annotations": [{"long_answer": SPAN, "short_answers": [SHORT]}]},
        {"question_text": "what does ost grind", "document_tokens": [{"token": t} for t in TOKENS],
         "annotations": [{"long_answer": {"start_token": -1, "end_token": -1}, "short_answers": []},
                         {"long_answer": SPAN, "short_answers": [SHORT]}]},
        {"question": {"text": "what does ost grind"}, "document": {"title": "Ost", "tokens": {"token": TOKENS}},
         "annotations": {"long_answer": [SPAN], "short_answers": [{"start_token": [9], "end_token": [10]}]}},
    ],
    ids=["simplified", "full", "the hub's"],
)  # fmt: skip
def test_natural_questions_as_published(tmp_path: Path, record: dict[str, Any]) -> None:
    path = jsonl(tmp_path / "nq.jsonl", record)
    item = one(path, contexts=["agrees"])
    assert read(path, split="all").format == "nq-original"
    assert (item.question, item.answers) == ("what does ost grind?", ("rye",))
    assert texts(item) == ["The mill at Ost grinds rye ."]


def test_natural_questions_without_a_short_answer_or_with_a_table(tmp_path: Path) -> None:
    record = {"question_text": "what does ost grind", "document_text": " ".join(TOKENS)}
    good = record | {"annotations": [{"long_answer": SPAN, "short_answers": [SHORT]}]}
    none = record | {"annotations": [{"long_answer": SPAN, "short_answers": []}]}
    table = {"start_token": 12, "end_token": 19}
    cell = {"start_token": 15, "end_token": 16}
    tabled = record | {"annotations": [{"long_answer": table, "short_answers": [cell]}]}
    reading = read(jsonl(tmp_path / "nq.jsonl", good, none, tabled), split="all", contexts=["agrees"])
    assert len(reading.items) == 1
    assert reading.skipped == {"no answer is given": 1, TABLE: 1}
    with pytest.raises(SettingsError, match=r"line 1: an annotated page .* is not as published \(KeyError: 'sh"):
        read(jsonl(tmp_path / "bad.jsonl", record | {"annotations": [{}]}), split="all")


@pytest.mark.parametrize(
    "context",
    [
        [["Ost", ["Ost has a mill. ", "It is old."]], ["Rye", ["Rye is grain."]]],
        {"title": ["Ost", "Rye"], "sentences": [["Ost has a mill. ", "It is old."], ["Rye is grain."]]},
    ],
    ids=["published", "the hub's"],
)
def test_hotpotqa(tmp_path: Path, context: Any) -> None:
    path = tmp_path / "hotpot.json"
    record = {"_id": "h", "question": "What grows?", "answer": "Rye", "type": "bridge", "context": context}
    path.write_text(json.dumps([record]))
    item = one(path, contexts=["agrees"])
    assert (item.id, item.answers, item.kind) == ("h", ("Rye",), "bridge")
    assert texts(item) == ["Ost has a mill. It is old.", "Rye is grain."]
    assert [d.metadata["title"] for d in item.documents] == ["Ost", "Rye"]


@pytest.mark.parametrize("classes", [[" grass.", " stone."], "[' grass.', ' stone.']"], ids=["list", "in a string"])
def test_memotrap(tmp_path: Path, classes: Any) -> None:
    record = {"prompt": 'End with "stone": The cow: it eats', "classes": classes, "answer_index": 1}
    item = one(jsonl(tmp_path / "trap.jsonl", record))
    assert (item.set, item.task, item.answers, item.belief) == ("contradicts", "choice", ("stone",), "grass")
    assert texts(item) == ['End with "stone".']
    assert item.query == 'The cow: it eats\nCandidates: "grass" or "stone"'
    assert item.query in item.question


@pytest.mark.parametrize(
    ("record", "format", "asked"),
    [
        ({"id": "1", "document": "Long.", "summary": "Short."}, "xsum", "in 1 sentence"),
        ({"title": "How", "article": "Long.", "summary": "Short."}, "wikihow", "in few steps"),
        ({"title": "How", "text": "Long.", "headline": "Short."}, "wikihow", "in few steps"),
        ({"article": "Long.", "highlights": "Short."}, "cnndm", "in 3 sentences"),
    ],
)
def test_summaries(tmp_path: Path, record: dict[str, str], format: str, asked: str) -> None:
    path = jsonl(tmp_path / "s.jsonl", record)
    item = one(path)
    assert read(path, split="all").format == format
    assert (item.set, item.task, texts(item), item.answers) == ("agrees", "summary", ["Long."], ("Short.",))
    assert asked in item.question


def test_instructions(tmp_path: Path) -> None:
    record = {"instruction": "Find the odd one out. ", "input": "oak, ash, tin", "output": "tin"}
    path = jsonl(tmp_path / "alpaca.jsonl", record, record | {"input": ""}, record | {"input": "tin, ash, elm"})
    reading = read(path, split="all")
    assert (reading.format, reading.skipped) == ("alpaca", {"no instruction, no input or no output is given": 1})
    (item,) = [item for item in reading.items if item.query == "oak, ash, tin"]
    assert (item.set, item.task, texts(item), item.answers) == (
        "agrees",
        "summary",
        ["Find the odd one out."],
        ("tin",),
    )
    assert len({item.group for item in reading.items}) == 2


def test_summaries_that_do_not_say_of_which_set_they_are(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "s.jsonl", {"article": "Long.", "summary": "Short."}, {"article": "", "summary": "Short."})
    with pytest.raises(SettingsError, match="line 1: the fields of the first entry must be those of one format, got `"):
        read(path, split="all")
    reading = read(path, split="all", format="xsum")
    assert (len(reading.items), reading.skipped) == (1, {"no article or no summary is given": 1})


def test_packed_files_and_json_that_is_one_object_a_line(tmp_path: Path) -> None:
    raw = (json.dumps(SWAP) + "\n" + json.dumps(SWAP | {"question": "who else"}) + "\n").encode()
    made = {
        "a.jsonl": raw,
        "a.json": raw,
        "a.jsonl.gz": gzip.compress(raw),
        "a.jsonl.xz": lzma.compress(raw),
        "b.json.xz": lzma.compress(json.dumps([json.loads(line) for line in raw.splitlines()]).encode()),
    }
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
        assert [e.fields["question"] for e in entries(tmp_path / name)] == [SWAP["question"], "who else"], name


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl.xz", lzma.compress(b"{}")[:-9], "must be a whole xz file, got a damaged one ("),
        ("a.json.gz", b"no", "must be a whole gzip file, got a damaged one ("),
        ("a.json", b"[{]", "a.json, line 1: a file must be JSON (Expecting property name"),
        ("a.json", b"7", "a.json: a file must hold a list of JSON objects; write [{...}, ...]"),
        ("a.json", b"[7]", 'a.json, record 1: a record must be one JSON object, got 7; write {"question": ...}'),
        ("a.json", b"\xff", "a.json: a file must be UTF-8, got byte 0xff; save it as UTF-8"),
        ("a.json", b"[" * 100_000, "a.json: a file must be JSON ("),
        ("a.json", b"[]", "must hold at least one question, got an empty file; write one JSON object a line"),
        ("a.json", b'[{"text": "x"}]', "record 1: the fields of the first entry must be those of one format, got `tex"),
        ("a.jsonl", b'{"sub_context": 5, "context": "x"}', "line 1: `sub_context` must be a string, got 5; put it in"),
        ("a.jsonl", b'{"sub_context": "x"}', "line 1: a line needs the field `org_context` or `context`, got `sub_con"),
        ("a.json", b'[{"paragraphs": [7]}]', "record 1, paragraphs[0]: a record must be one JSON object, got 7; wri"),
        ("a.json", b'[{"paragraphs": 7}]', "record 1: `paragraphs` must be a list of JSON objects, got 7; write"),
        ("a.json", b'[{"paragraphs": [{"context": "x", "qas": [{"question": "x", "answers": 7}]}]}]',
         "record 1, paragraphs[0], qas[0]: `answers` must be a list, got 7; write"),
        ("a.json", b'[{"question": "x", "context": "y", "answers": [7]}]', "record 1: `answers` must be a list of str"),
        ("a.json", b'[{"question": "x", "context": [7], "answer": "y"}]', "`context` must be a list of [title, sente"),
        ("a.json", b'[{"prompt": "x", "classes": ["a", "b"], "answer_index": 0}]', "`prompt` must be an instruction"),
        ("a.json", b'[{"prompt": "x: y", "classes": "[1", "answer_index": 0}]', "`classes` must be a list of two str"),
        ("a.json", b'[{"prompt": "x: y", "classes": ["a"], "answer_index": 0}]', "`classes` must be a list of two st"),
        ("a.json", b'[{"prompt": "x: y", "classes": ["a", "b"], "answer_index": 2}]', "`answer_index` must be 0 or 1,"),
    ],
    ids=range(20),
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=re.escape(said)) as caught:
        read(path, split="all")
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 500


def test_a_format_that_is_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "swap.jsonl", SWAP)
    with pytest.raises(SettingsError, match=r"`format` must be one of \['nqswap', 'nq', .*'own'\], got 'csv'; check"):
        read(path, format="csv")
    with pytest.raises(SettingsError, match="a line needs the field `context`, got `id`"):
        read(path, format="squad", split="all")


def test_no_two_formats_claim_one_entry(tmp_path: Path) -> None:
    """The examples of the other tests are recognised, so they match one format each; these might match two."""
    for fields in (SWAP, SWAP | {"answers": ["x"]}, SWAP | {"context": "x", "answer": ["x"]}):
        (entry,) = entries(jsonl(tmp_path / "a.jsonl", fields))
        assert [name for name, format in FORMATS.items() if format.recognises(entry)] == ["nqswap"]
        assert recognised(entry) == "nqswap"


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("rajpurkar/squad", True), ("hotpotqa/hotpot_qa/distractor:train", True), ("a/b:test", True), ("squad", False),
     ("data/dev.json", False), ("data/dev.jsonl.xz", False), ("/data/squad", False), ("a/b/c/d", False)],
)  # fmt: skip
def test_what_may_be_a_set_of_the_hub(name: str, is_one: bool) -> None:
    assert is_hub_id(name) is is_one


def test_the_hub_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(
        MissingExtraError, match=r"there is no file nobody/nothing, .* `datasets` is missing; name a fi"
    ):
        read("nobody/nothing")


def test_the_hub_with_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="reads sets of the hub")
    monkeypatch.chdir(tmp_path)  # a folder instead of the hub, which the library treats alike
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "owner" / "name").mkdir(parents=True)
    jsonl(tmp_path / "owner" / "name" / "validation.jsonl", SWAP)
    jsonl(tmp_path / "owner" / "name" / "train.jsonl", SWAP | {"question": "who else"})
    assert [i.query for i in read("owner/name", split="all", contexts=["agrees"]).items] == [
        "who mends the harbour clock?"
    ]
    assert [e.fields["question"] for e in from_hub("owner/name:train")] == ["who else"]
    with pytest.raises(
        SettingsError, match="nobody/nothing must be a file or a set of the hub that can be reached, got"
    ):
        read("nobody/nothing")
