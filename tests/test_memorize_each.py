"""`Engine.memorize_each`, and `memorize_all` in this process: one memory a document, in a bank, and never twice."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from memograft import Bank, Compacted, Document, Engine, FastMem, Kept
from memograft.cluster import Pool, memorize_all
from memograft.errors import MissingExtraError, PromptTooLongError, SettingsError
from memograft.memory.folder import inspected

PAGES = [Document(f"The harbour of town {n} was built by Ada Brook, and {n} boats lie there.") for n in range(5)]


def inodes(folder: Path) -> dict[str, int]:
    """Which files there are: a file that is written again has another inode."""
    return {path.name: (path / "memograft.json").stat().st_ino for path in folder.iterdir() if path.is_dir()}


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    with Engine.from_pretrained("tiny", bank=Bank(tmp_path / "bank"), max_batch=2) as opened:
        yield opened


def test_a_document_has_the_memory_that_memorize_gives_it(engine: Engine, tiny: Engine) -> None:
    reports = engine.memorize_each(PAGES)
    assert [report.id for report in reports] == [tiny.memorize([page]).id for page in PAGES]
    assert [report.documents for report in reports] == [(page.id,) for page in PAGES]
    assert not any(report.reused or report.rolled_back for report in reports)
    answer = engine.answer("Who built the harbour?", [PAGES[3]], memory=FastMem(relevance=None))
    assert answer.memory is not None
    assert (answer.memory.reused, answer.memory.id) == (True, reports[3].id)


def test_what_the_bank_has_is_not_read_again(engine: Engine) -> None:
    assert engine.bank is not None
    assert engine.bank.folder is not None
    first = engine.memorize_each(PAGES[:3])
    before = inodes(engine.bank.folder)
    again = engine.memorize_each(PAGES)
    assert [report.reused for report in again] == [True] * 3 + [False] * 2
    assert [report.id for report in again[:3]] == [report.id for report in first]
    assert inodes(engine.bank.folder).items() >= before.items()
    assert len(inodes(engine.bank.folder)) == 5


def test_memories_that_are_joined_for_a_request_are_these(engine: Engine) -> None:
    engine.memorize_each(PAGES, FastMem(compose=True))
    composed = engine.answer("Who?", PAGES[:3], memory=FastMem(relevance=None, conflicts=None, compose=True)).memory
    assert composed is not None
    assert (composed.reused, composed.documents) == (True, tuple(page.id for page in PAGES[:3]))


def test_compacted_documents_are_kept_with_their_memories(engine: Engine) -> None:
    assert engine.bank is not None
    (report,) = engine.memorize_each(PAGES[:1], Compacted(FastMem(), 4))
    assert len(engine.bank.entries()) == 2
    assert engine.memorize_each(PAGES[:1], Compacted(FastMem(), 4))[0].reused
    assert engine.memorize_each(PAGES[:1], FastMem())[0].reused
    assert not engine.memorize_each(PAGES[:1], Compacted(None, 2))[0].reused
    assert report.id in {entry.id for entry in engine.bank.entries()}


def test_what_a_bank_does_not_keep_is_told(engine: Engine) -> None:
    for pages, memory in ((PAGES[:1], Kept()), ([Document(" ", "blank")], FastMem())):
        (report,) = engine.memorize_each(pages, memory)
        assert report.id == ""
        assert report.reason is not None
        assert "a bank keeps no memory of it" in report.reason


def test_a_bank_that_cannot_be_written_is_told(engine: Engine) -> None:
    assert engine.bank is not None
    assert engine.bank.folder is not None
    engine.bank.folder.rmdir()
    engine.bank.folder.write_text("a file in its place")
    with pytest.warns(UserWarning, match="could not be kept"):
        (report,) = engine.memorize_each(PAGES[:1])
    assert (report.id, report.rolled_back, report.reason) == (
        "",
        True,
        "the bank could not write it; a warning says why",
    )


def test_a_document_that_is_too_long_stops_no_other_one(engine: Engine) -> None:
    pages = [PAGES[0], Document("a word " * 5000, "long"), PAGES[1]]
    first, second, third = engine.memorize_each(pages, return_exceptions=True)
    assert isinstance(second, PromptTooLongError)
    assert not isinstance(first, PromptTooLongError)
    assert first.id
    with pytest.raises(PromptTooLongError):
        engine.memorize_each(pages)
    assert engine.memorize_each(pages, return_exceptions=True)[2] != third  # it is `reused` now


def test_an_engine_without_a_bank_refuses(tiny: Engine) -> None:
    with pytest.raises(SettingsError, match=r"puts memories into the engine's bank, and it has none; pass Engine"):
        tiny.memorize_each(PAGES)


def test_many_documents_in_this_process(tmp_path: Path) -> None:
    pages = [*PAGES, Document(PAGES[0].text, "a copy"), Document("a word " * 5000, "long")]
    done = memorize_all(pages, tmp_path / "bank", progress=False)
    assert [outcome.status for outcome in done.outcomes] == ["made"] * 6 + ["failed"]
    assert done.outcomes[5].memory == done.outcomes[0].memory
    assert "more than" in done.outcomes[6].reason
    before = inodes(tmp_path / "bank")
    assert set(before) == {outcome.memory for outcome in done.outcomes[:6]}
    again = memorize_all(pages, Bank(tmp_path / "bank"), progress=False)
    assert (again.count("there"), again.count("made"), again.count("failed")) == (6, 0, 1)
    assert inodes(tmp_path / "bank") == before
    assert not [id for id in before if inspected(tmp_path / "bank" / id).damaged]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "`workers` must be a number of at least 1, got 0"),
        ({"cpus": 1.5}, "`cpus` must be a number of at least 1, got 1.5"),
        ({"gpus": -1}, "`gpus` must be a number of at least 0, got -1"),
    ],
)
def test_pools_that_cannot_be(options: dict[str, int], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Pool(**options)


def test_what_cannot_be_memorized_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"workers share a bank's folder, and Bank\(\) has none; pass Bank\(FOLDER"):
        memorize_all(PAGES, Bank(), model="no such model")
    with pytest.raises(SettingsError, match="`batch` must be at least 1 document, got 0"):
        memorize_all(PAGES, tmp_path, model="no such model", batch=0)
    with pytest.raises(SettingsError, match=r"metadata must be JSON to be saved, that of 'odd' is not"):
        memorize_all([Document("odd", "odd", {"set": {1}})], tmp_path, model="no such model")


def test_without_ray_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"several workers need Ray.*pip install 'memograft\[ray\]'"):
        memorize_all(PAGES, tmp_path, pool=Pool(2), progress=False)
    assert os.listdir(tmp_path) == []


def test_if_ray_cannot_be_imported_the_error_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('pyarrow requires NumPy 2.0')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    said = r"several workers need Ray, and it cannot be imported \(pyarrow requires NumPy 2.0\)"
    with pytest.raises(MissingExtraError, match=said):
        memorize_all(PAGES, tmp_path / "bank", pool=Pool(2), progress=False)
