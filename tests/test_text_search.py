"""Search by words against a naive BM25, hybrid search against its formula, and consistency of the text index."""

from __future__ import annotations

import logging
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memograft.documents import Document
from memograft.errors import SettingsError, StoreCorruptError, StoreError
from memograft.passages import words
from memograft.passages.rows import sum_settings
from memograft.passages.search import fused
from memograft.passages.vector_store import VectorStore
from reference.bm25 import bm25
from store_doubles import NumberEmbedder, found, numbered

WORDS = [f"w{n}" for n in range(40)]  # words without English endings


def matching(store: VectorStore, question: str, **how: Any) -> list[Document]:
    """The passages that share a word with the question, best first."""
    return [hit.document for hit in store.search(question, 1000, mode="text", **how) if hit.score > 0]


def random_text(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randrange(3, 30), weights=range(40, 0, -1)))


def agrees(store: VectorStore, model: dict[str, Document], question: str, k: int = 10, least: int = -1) -> None:
    """The store's result equals that of the naive BM25; ties may be in any order."""
    documents = list(model.values())
    scores = bm25([d.text.split() for d in documents], set(question.split())) if documents else []
    expected = {d.id: s for d, s in zip(documents, scores, strict=True) if d.metadata["n"] > least}
    hits = store.search(question, k, {"n": {"$gt": least}} if least >= 0 else None, mode="text")
    assert len(hits) == min(k, len(expected))
    assert [hit.score for hit in hits] == pytest.approx(sorted(expected.values(), reverse=True)[:k])
    assert all(hit.document == model[hit.document.id] for hit in hits)
    assert len({hit.document.id for hit in hits}) == len(hits)
    assert [hit.score for hit in hits] == pytest.approx([expected[hit.document.id] for hit in hits])


# words ------------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_a_naive_bm25_through_every_kind_of_write(tmp_path: Path) -> None:
    rng = random.Random(0)
    model: dict[str, Document] = {}
    store = VectorStore(path=tmp_path)
    for step in range(120):
        action = rng.random()
        if action < 0.6:
            batch = [Document(random_text(rng), f"id{rng.randrange(60)}", {"n": step}) for _ in range(5)]
            store.add(batch)
            model |= {document.id: document for document in batch}
        elif action < 0.8:
            gone = rng.choices([f"id{n}" for n in range(60)], k=3)
            store.delete(gone)
            model = {id: document for id, document in model.items() if id not in gone}
        elif action < 0.9:
            store.compact()
        else:
            store.close()
            store = VectorStore.open(tmp_path)
        question = " ".join(rng.choices(WORDS, k=rng.randrange(1, 6)))
        agrees(store, model, question)
        agrees(store, model, question, k=3, least=step // 2)
        if step % 10 == 0:
            assert store.verify() == []
    store.close()


def test_words_meet_without_accents_case_and_english_endings() -> None:
    store = VectorStore()
    store.add(["The café memorised Zoë's documents.", "Bees dance.", "Nothing of it."])
    for question in ("CAFE", "zoe", "memorising", "document", "What did the café do?"):
        assert [document.text[:8] for document in matching(store, question)] == ["The café"], question
    assert [document.text for document in matching(store, "the bees")] == ["Bees dance."], (
        "what is everywhere is not asked"
    )
    store.add(["To be or not to be."])
    assert store.search("to be or not to be")[0].document.text == "To be or not to be."


@pytest.mark.parametrize(
    "question",
    [
        '"',
        "bees AND",
        "NOT bees",
        "NEAR(bees dance, 2)",
        "text: bees",
        "bees*",
        "^bees",
        "-bees +dance",
        "bees') OR 1=1; DROP TABLE passages; --",
        "bees\0dance",
        "bees \ud800",
        "(((((",
        "",
        "¿…?",
        "bees " + "x" * 100_000,
        " ".join(f"x{n}" for n in range(5000)) + " bees",
    ],
)
def test_nothing_in_a_question_is_syntax(question: str) -> None:
    store = VectorStore()
    store.add(["Bees dance.", "Something else.", "x0 x1"])
    hits = matching(store, question)
    meant = "bees" in question.lower() and len(question) < 20_000
    assert ("Bees dance." in [document.text for document in hits]) == (meant or "x" * 9 in question)
    assert len(store) == 3


def test_a_reader_sees_each_commit(tmp_path: Path) -> None:
    with VectorStore(path=tmp_path) as writer, VectorStore(path=tmp_path, read_only=True) as reader:
        for n in range(5):
            writer.add([Document(f"bees number{n}", str(n))])
            assert [document.id for document in matching(reader, f"number{n}")] == [str(n)]
        writer.delete(["3"])
        assert matching(reader, "number3") == []
        assert reader.verify() == []


def test_a_write_that_fails_leaves_the_words_as_they_were(tmp_path: Path) -> None:
    with VectorStore(path=tmp_path) as store:
        store.add(["bees dance"])
        ((pages,),) = store._database.rows("PRAGMA page_count")
        store._database.rows(f"PRAGMA max_page_count = {pages + 3}")
        with pytest.raises(StoreError, match="could not be written"):
            store.add([f"new passage {random_text(random.Random(n))} {n}" for n in range(500)])
        assert matching(store, "passage") == []
        assert len(matching(store, "bees")) == 1
        assert store.verify() == []


def test_varied_passages_are_found_without_vectors() -> None:
    store = VectorStore()
    store.add(["The capital of France is Paris.", "The capital of France is Paris!", "France exports wine.", "Bees."])
    hits = store.mmr("capital of France", k=2, fetch_k=3)
    assert [hit.document.text for hit in hits] == ["The capital of France is Paris.", "France exports wine."]
    assert hits[0].score == store.search("capital of France")[0].score
    assert [hit.document.text[-1] for hit in store.mmr("capital of France", k=2, lambda_mult=1)] == [".", "!"]
    assert [hit.score for hit in store.mmr("nobody says so", k=9)] == [0] * 4


# modes ------------------------------------------------------------------------------------------------------------


def test_hybrid_joins_both_rankings_by_their_reciprocal_ranks() -> None:
    assert fused([[7, 8], [9, 7]]) == [
        (7, pytest.approx(1 / 61 + 1 / 62)),
        (9, pytest.approx(1 / 61)),
        (8, pytest.approx(1 / 62)),
    ]
    store = VectorStore(NumberEmbedder())
    store.add([Document(f"{n} {'bees ' * n}", str(n), {"n": n}) for n in range(20)])
    by_words, by_vector = (found(store.search("7 bees", 20, mode=mode)) for mode in ("text", "vector"))
    assert by_words != by_vector
    ranks = {n: sum(1 / (61 + way.index(n)) for way in (by_words, by_vector) if n in way) for n in range(20)}
    hits = store.search("7 bees", 5, mode="hybrid")
    assert [hit.score for hit in hits] == pytest.approx(sorted(ranks.values(), reverse=True)[:5])
    assert [hit.score for hit in hits] == pytest.approx([ranks[n] for n in found(hits)])
    odd = store.search("7 bees", 30, {"n": {"$in": [1, 3, 5]}}, mode="hybrid")
    assert set(found(odd)) == {1, 3, 5}


def test_a_vector_that_is_given_is_not_made_again() -> None:
    class Once(NumberEmbedder):
        def embed_query(self, text: str) -> np.ndarray:
            raise AssertionError("asked")

    store = VectorStore(Once())
    store.add(numbered(range(9)))
    vector = store.embedder.embed_documents(["3 text"])[0]
    assert found(store.search("3 text", 1, mode="vector", vector=vector)) == [3]
    assert 3 in found(store.search("3 text", 2, mode="hybrid", vector=vector))
    assert len(store.search("text", mode="text")) == 4


def test_the_default_is_by_vectors_where_there_are_any() -> None:
    store = VectorStore(NumberEmbedder())
    store.add(numbered(range(9)))
    assert store.search("5", 3) == store.search("5", 3, mode="vector")
    plain = VectorStore()
    plain.add(numbered(range(9)))
    assert plain.search("5 text", 3) == plain.search("5 text", 3, mode="text")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda s: s.search("x", mode="both"), '`mode` must be "text", "vector" or "hybrid", got \'both\'; leave it'),
        (lambda s: s.search("x", mode="vector"), "was made without an embedder and has no vectors .*, got 'x'; search"),
        (lambda s: s.search("x", mode="hybrid"), "was made without an embedder"),
        (lambda s: s.search_by_vector([1.0]), "takes no vectors; search it with mode"),
        (lambda s: s.mmr_by_vector([1.0]), "takes no vectors"),
        (lambda s: s.add(["x"], [[1.0]]), "takes no vectors"),
        (lambda s: s.search(3), "`query` must be a string, got int"),
        (lambda s: s.mmr(3), "`query` must be a string, got int"),
        (lambda s: s.mmr("x", fetch_k=0), "`fetch_k` must be a whole number"),
    ],
)
def test_what_a_store_without_vectors_cannot_do_is_said(call: Callable[[VectorStore], object], text: str) -> None:
    store = VectorStore()
    with pytest.raises(SettingsError, match=text):
        call(store)


def test_a_store_without_vectors_takes_neither_faiss_nor_room_for_them(tmp_path: Path) -> None:
    code = f"""
import sys
from memograft import VectorStore
with VectorStore(path={str(tmp_path)!r}) as store:
    store.add(["Bees dance.", "Nothing else."])
    print(store.search("bee")[0].document.text, store.vectors(store.add(["more"])).shape, store.compact())
print({{"torch", "faiss", "sklearn"}} & set(sys.modules))
"""
    source = Path(words.__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(source)}, capture_output=True, text=True)
    assert run.stdout.splitlines() == ["Bees dance. (1, 0) 0", "set()"], run.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["passages.sqlite3", "writer.lock"]


# older stores, and other versions of SQLite
# ----------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store without a text index, as an older version made it."""
    with VectorStore(NumberEmbedder(), tmp_path / "old") as store:
        store.add(numbered(range(30)))
    connection = sqlite3.connect(tmp_path / "old" / "passages.sqlite3")
    connection.executescript("DROP TABLE words; DELETE FROM settings WHERE key = 'words'; PRAGMA user_version = 1;")
    sum_settings(connection)
    connection.commit()
    connection.close()
    return tmp_path / "old"


def test_a_store_from_before_is_indexed_once_by_its_next_writer(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with VectorStore(NumberEmbedder(), old, read_only=True) as reader:
        assert found(reader.search("3", 1)) == [3]
        for mode in ("text", "hybrid"):
            with pytest.raises(
                StoreError, match=r"it has no text index, .*; open it for writing once, which makes the"
            ):
                reader.search("3", mode=mode)
    monkeypatch.setattr(words, "_AT_ONCE", 7)  # several pages, the last one not full
    with VectorStore(NumberEmbedder(), old) as store:
        assert [document.id for document in matching(store, "23 unknown")] == ["id23"]
        assert len(matching(store, "text")) == 30
        assert store.verify() == []
    with VectorStore(NumberEmbedder(), old, read_only=True) as reader:
        assert found(reader.search("3", 1, mode="text")) == [3]


def test_without_fts5_a_store_is_searched_by_its_vectors(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All SQLites here have FTS5, so its detection is made to return False."""
    with VectorStore(NumberEmbedder(), tmp_path / "new") as store:
        store.add(numbered(range(5)))
    monkeypatch.setattr(words, "is_available", lambda _: False)
    with VectorStore(NumberEmbedder(), old) as store:
        store.add(numbered([30]))
        assert found(store.search("30", 1)) == [30]
        with pytest.raises(StoreError, match=r"or the SQLite of this Python .* has no FTS5"):
            store.search("30", mode="text")
    with pytest.raises(StoreError, match=r"which only an SQLite with FTS5 can update.*; open it with read_on"):
        VectorStore(NumberEmbedder(), tmp_path / "new")
    with VectorStore(NumberEmbedder(), tmp_path / "new", read_only=True) as reader:
        assert found(reader.search("3", 1)) == [3]
        assert reader.verify() == []
    with pytest.raises(StoreError, match="a store in memory cannot be searched by its words"):
        VectorStore()


# damage -----------------------------------------------------------------------------------------------------------


def damage(folder: Path) -> None:
    """Replace a word in the index, which SQLite does not detect."""
    connection = sqlite3.connect(folder / "passages.sqlite3")
    ((before,),) = connection.execute("SELECT count(*) FROM words_data WHERE instr(block, 'ees') > 0")
    assert before == 1
    rows = connection.execute("SELECT id, block FROM words_data WHERE instr(block, 'ees') > 0").fetchall()
    for id, block in rows:
        connection.execute("UPDATE words_data SET block = ? WHERE id = ?", [block.replace(b"ees", b"eez"), id])
    connection.commit()
    connection.close()


def test_a_damaged_text_index_is_named_and_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with VectorStore(path=tmp_path) as store:
        store.add([Document("beest dance", str(n)) for n in range(5)])
    damage(tmp_path)
    with pytest.raises(StoreCorruptError, match=r"has a damaged text index; open the store for writing and compact"):
        VectorStore.open(tmp_path, read_only=True)
    with caplog.at_level(logging.INFO), VectorStore.open(tmp_path) as store:
        assert "rebuilding the text index" in caplog.text
        assert len(matching(store, "beest")) == 5
        assert store.verify() == []
    VectorStore.open(tmp_path, read_only=True).close()


def test_damage_to_an_index_in_use_is_found_by_verify(tmp_path: Path) -> None:
    with VectorStore(path=tmp_path) as store:
        store.add([Document("beest dance", str(n)) for n in range(5)])
        damage(tmp_path)
        with pytest.raises(StoreCorruptError, match="has a damaged text index"):
            store.verify()
        store.compact()
        assert store.verify() == []
        assert len(matching(store, "beest")) == 5


def test_a_text_that_was_damaged_and_is_replaced_leaves_no_words_behind(tmp_path: Path) -> None:
    with VectorStore(path=tmp_path) as store:
        store.add([Document("bees dance", "a"), Document("cats sleep", "b")])
        store._database.rows("UPDATE passages SET text = 'a lie' WHERE id = 'a'")
        store.add([Document("dogs bark", "a")])
        assert matching(store, "bees") == []
        assert len(matching(store, "dogs")) == 1
        assert store.verify() == []
