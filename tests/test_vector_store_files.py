"""The vector store on disk: opening, several processes, damaged files and full disks."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from memograft.documents import Document
from memograft.errors import (
    EmbedderMismatchError,
    SettingsError,
    StoreCorruptError,
    StoreError,
    StoreLockedError,
    StoreReadOnlyError,
)
from memograft.passages.embedders import LexicalEmbedder
from memograft.passages.vector_store import IndexSettings, VectorStore
from store_doubles import NumberEmbedder, found, numbered

SOURCE = Path(__file__).parent.parent / "src"


@pytest.fixture
def folder(tmp_path):
    with VectorStore(LexicalEmbedder(), tmp_path / "store") as store:
        store.add([Document(f"passage about topic{i}", str(i), {"i": i}) for i in range(40)])
    return tmp_path / "store"


def index_file(folder: Path) -> Path:
    (file,) = folder.glob("vectors-*.faiss")
    return file


def test_open_again_with_the_stored_embedder_and_index(tmp_path) -> None:
    with VectorStore(LexicalEmbedder(128), tmp_path / "s", index=IndexSettings("hnsw", hnsw_search=99)) as store:
        store.add(["some text about bees"])
    with VectorStore.open(tmp_path / "s") as store:
        assert store.search("bees")[0].document.text == "some text about bees"
        assert store._cache.index.settings == IndexSettings("hnsw", hnsw_search=99)
        assert not store._cache.index.is_exact
    with VectorStore(path=tmp_path / "s", index="flat") as store:
        assert store._cache.index.is_exact
        assert len(store.search("bees")) == 1


KINDS = ("flat", "ivfpq", "hnsw", "ivf", "flat")


def test_another_kind_rebuilds_the_index_and_settings_of_the_search_do_not(tmp_path) -> None:
    embedder, folder = NumberEmbedder(), tmp_path / "s"
    for kind in KINDS:
        with VectorStore(embedder, folder, index=IndexSettings(kind, ivf_train_at=300)) as store:
            store.add(numbered(range(400)))
            assert found(store.search("77", k=1)) == [77]
            assert store._cache.index.is_exact == (kind == "flat")
    with pytest.raises(SettingsError, match="`pq_bytes` must divide the dimension of the vectors, 16, got 3; leave it"):
        VectorStore(embedder, folder, index=IndexSettings("ivfpq", pq_bytes=3))
    compressed = IndexSettings("ivfpq", ivf_train_at=300)
    VectorStore(embedder, folder, index=compressed).close()
    file = index_file(folder)
    before = file.stat().st_mtime_ns
    for settings in (replace(compressed, nprobe=3, rerank=2, hnsw_search=7), replace(compressed, nprobe=99)):
        with VectorStore(embedder, folder, index=settings) as store:
            assert store._cache.index.settings == settings
    assert (index_file(folder), file.stat().st_mtime_ns) == (file, before)
    VectorStore(embedder, folder, index=replace(compressed, pq_bytes=4)).close()
    assert index_file(folder) != file


def test_an_index_file_of_a_version_with_fewer_settings_is_used(folder, caplog) -> None:
    caplog.set_level("INFO")
    file = index_file(folder)
    with VectorStore.open(folder) as store:
        pointer = store._database.settings()["index_file"]
        for name in ("pq_bytes", "rerank"):
            del pointer["settings"][name]
        store._database.set(index_file=pointer)
    with VectorStore.open(folder) as store:
        store._cache.persist()
    assert index_file(folder) == file


def test_another_embedder_is_refused(folder) -> None:
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(EmbedderMismatchError, match=r"built with the embedder 'lexical.*' \(D=1024\), got 'number-16'"):
        VectorStore(NumberEmbedder(), folder)
    assert before == {file: file.read_bytes() for file in folder.iterdir()}


def test_an_embedder_that_only_the_user_has(tmp_path) -> None:
    with VectorStore(NumberEmbedder(), tmp_path / "s") as store:
        store.add(numbered([5]))
    with pytest.raises(SettingsError, match=r"got \{'type': 'number'\}; pass `embedder=` yourself"):
        VectorStore.open(tmp_path / "s")
    with VectorStore.open(tmp_path / "s", NumberEmbedder()) as store:
        assert found(store.search("5")) == [5]


def test_open_wants_a_store_that_exists(tmp_path) -> None:
    for read_only in (False, True):
        with pytest.raises(StoreError, match="holds no store; create it with"):
            VectorStore.open(tmp_path / "none", read_only=read_only)
    assert not (tmp_path / "none").exists()
    with pytest.raises(StoreError, match="holds no store to read"):
        VectorStore(path=tmp_path, read_only=True)


def test_read_only_refuses_every_write_and_maps_the_index(folder) -> None:
    with VectorStore.open(folder, read_only=True) as store:
        if Path("/proc/self/maps").exists():
            assert str(index_file(folder)) in Path("/proc/self/maps").read_text()
        for write in (
            lambda: store.add(["x"]),
            lambda: store.add([]),
            lambda: store.delete(["1"]),
            lambda: store.delete(where={}),
            store.compact,
            store.persist,
        ):
            with pytest.raises(StoreReadOnlyError, match="is open with read_only=True; open it without to change it"):
                write()
        assert store.search("topic7", k=1)[0].document.id == "7"
        assert len(store) == 40


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_read_only_follows_the_writer(tmp_path, kind) -> None:
    embedder = NumberEmbedder()
    with VectorStore(embedder, tmp_path / "s", index=IndexSettings(kind, ivf_train_at=256)) as writer:
        others = range(100, 400)
        writer.add(numbered(others))
        writer.add(numbered(range(50)))
        writer.persist()
        with VectorStore(embedder, tmp_path / "s", read_only=True) as reader:
            writer.add(numbered([77]))
            assert found(reader.search("77", k=1)) == [77]
            writer.delete(["id77", "id3"])
            assert {77, 3}.isdisjoint(found(reader.search("77", k=1000)))
            writer.compact()  # deletes the file that the reader has mapped
            writer.add(numbered([78]))
            assert found(reader.search("78", k=1)) == [78]
            assert sorted(found(reader.search("1", k=1000))) == sorted({*range(50), 78, *others} - {3})


def test_one_writer_at_a_time(folder) -> None:
    with VectorStore.open(folder):
        with pytest.raises(StoreLockedError, match=r"one writer at a time .* open this one with read_only=True"):
            VectorStore.open(folder)
        code = f"from memograft.passages.vector_store import VectorStore; VectorStore.open({str(folder)!r})"
        other = python(code)
        assert "StoreLockedError: one writer at a time" in other.stderr
        VectorStore.open(folder, read_only=True).close()
    VectorStore.open(folder).close()


def python(code: str, **options) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, text=True, capture_output=True, timeout=60, **options
    )


def test_closed_stores(folder) -> None:
    store = VectorStore.open(folder)
    store.close()
    store.close()
    for use in (lambda: store.search("x"), lambda: store.add(["x"]), lambda: len(store), lambda: list(store)):
        with pytest.raises(StoreError, match="is closed; open it again"):
            use()


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "foreign", "empty"])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_damaged_index_file_is_rebuilt(folder, damage, read_only, caplog) -> None:
    caplog.set_level("INFO")
    file = index_file(folder)
    data = bytearray(file.read_bytes())
    match damage:
        case "missing":
            file.unlink()
        case "truncated":
            file.write_bytes(data[:-100])
        case "flipped":
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
        case "foreign":
            file.write_bytes(b"not an index at all")
        case "empty":
            file.write_bytes(b"")
    with VectorStore.open(folder, read_only=read_only) as store:
        assert store.search("topic7", k=1)[0].document.id == "7"
        assert len(store.search("topic7", k=100)) == 40
    assert "rebuilding the vector index from SQLite" in caplog.text


def test_what_a_crash_left_of_an_index_file_is_cleared_away(folder) -> None:
    (folder / "vectors-2.faiss").write_bytes(b"half of an in")
    (folder / "vectors-9.faiss").write_bytes(b"")
    (folder / "passages.sqlite3.new").write_bytes(b"")
    with VectorStore.open(folder) as store:
        assert len(store.search("topic", k=100)) == 40
        store.add(["one more"])
    assert index_file(folder).name == "vectors-2.faiss"
    with VectorStore.open(folder, read_only=True) as store:
        assert len(store.search("topic", k=100)) == 41


def test_an_index_that_is_behind_catches_up(folder, tmp_path) -> None:
    """The files of a killed writer: the index file is older than the rows."""
    store = VectorStore.open(folder)
    store.add([Document("a late passage", "late")])
    store.delete(["7"])
    shutil.copytree(folder, tmp_path / "copy")
    store.close()
    for read_only in (True, False):
        with VectorStore.open(tmp_path / "copy", read_only=read_only) as copy:
            assert copy.search("late", k=1)[0].document.id == "late"
            assert "7" not in {hit.document.id for hit in copy.search("topic7", k=100)}


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "another database", "scrambled", "newer"])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_damaged_database_is_refused(folder, damage, read_only) -> None:
    file = folder / "passages.sqlite3"
    data = bytearray(file.read_bytes())
    text = "passages.sqlite3.*restore it from a backup"
    match damage:
        case "truncated":
            file.write_bytes(data[: len(data) // 2])
        case "empty":
            file.write_bytes(b"")
        case "foreign":
            file.write_bytes(b"hello " * 1000)
        case "another database":
            file.unlink()
            with sqlite3.connect(file) as connection:
                connection.execute("CREATE TABLE t (x)")
            connection.close()
            text = "it is not a Memograft store"
        case "scrambled":
            data[4096 : 4096 * 6] = random.Random(0).randbytes(4096 * 5)
            file.write_bytes(data)
        case "newer":
            connection = sqlite3.connect(file)
            connection.execute("PRAGMA user_version = 9")
            connection.close()
            text = "its format is 9 and this Memograft reads formats 1 to 3"
    with pytest.raises(StoreCorruptError, match=text):
        VectorStore.open(folder, read_only=read_only)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_large_file_is_not_read_completely_when_it_is_opened(folder, monkeypatch, read_only) -> None:
    monkeypatch.setattr("memograft.passages.db.CHECKED_WHOLE", 2**16)
    damaged = folder / "passages.sqlite3"
    connection = sqlite3.connect(damaged)
    connection.execute("DELETE FROM vectors WHERE seq = 5")
    connection.execute("UPDATE passages SET text = 'something else' WHERE id = '30'")
    connection.commit()
    connection.close()
    with VectorStore.open(folder, read_only=read_only) as store:
        assert store.search("topic7", k=1)[0].document.id == "7"
        with pytest.raises(StoreCorruptError, match="passage '30' is not what was stored"):
            store.search("topic30", k=1)
        with pytest.raises(StoreCorruptError, match="passage '4' has no vector of 1024 numbers"):
            store.verify()
    damaged.write_bytes(damaged.read_bytes()[:-8192])
    with pytest.raises(StoreCorruptError, match=r"passages.sqlite3.*restore it from a backup"):
        VectorStore.open(folder, read_only=read_only)


def test_a_missing_vector_is_damage(folder) -> None:
    connection = sqlite3.connect(folder / "passages.sqlite3")
    connection.execute("DELETE FROM vectors WHERE seq = 5")
    connection.commit()
    connection.close()
    with pytest.raises(StoreCorruptError, match="passage '4' has no vector of 1024 numbers"):
        VectorStore.open(folder)
    with pytest.raises(StoreCorruptError, match="a store is a folder"):
        VectorStore(path=folder / "passages.sqlite3")


def test_a_log_without_its_database_is_not_replayed(folder) -> None:
    (folder / "passages.sqlite3").rename(folder / "passages.sqlite3-wal")
    with pytest.raises(StoreCorruptError, match="it is missing although its write-ahead log is there"):
        VectorStore(path=folder)


def test_nothing_is_pickled_and_names_are_plain(folder) -> None:
    assert sorted(file.name for file in folder.iterdir()) == ["passages.sqlite3", "vectors-1.faiss", "writer.lock"]


# full disks -------------------------------------------------------------------------------------------------------


def test_a_full_database_changes_nothing_and_goes_on(folder) -> None:
    with VectorStore.open(folder) as store:
        (pages,) = store._database.rows("PRAGMA page_count")[0]
        store._database.rows(f"PRAGMA max_page_count = {pages + 3}")
        with pytest.raises(StoreError, match=r"could not be written .*full.* is unchanged; free some"):
            store.add([f"new passage {i}" for i in range(200)])
        assert len(store) == 40
        assert len(store.search("new passage", k=500)) == 40
        store._database.rows(f"PRAGMA max_page_count = {pages + 10_000}")
        store.add([f"new passage {i}" for i in range(200)])
        assert len(store.search("new passage", k=500)) == 240


def test_a_file_size_limit_of_the_system(folder) -> None:
    """The kernel refuses to let files grow: first the database, then only the index file."""
    code = f"""
import resource
from memograft.errors import StoreError
from memograft.passages.vector_store import VectorStore

store = VectorStore.open({str(folder)!r})
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, unlimited[1]))
try:
    store.add([f"new passage {{i}}" for i in range(500)])
except StoreError as error:
    print("database:", error)
print(len(store), len(store.search("new passage", k=1000)))
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
store.add(["one more"])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, unlimited[1]))
try:
    store.persist()
except StoreError as error:
    print("index:", error)
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
print(store.search("one more", k=1)[0].document.text)
store.close()
print(len(VectorStore.open({str(folder)!r}, read_only=True)))
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)
    lines = python(code)
    assert lines.returncode == 0, lines.stderr
    database, counts, index, more, total = lines.stdout.splitlines()
    assert "passages.sqlite3 could not be written" in database
    assert counts == "40 40"
    assert "the documents are safe in SQLite" in index
    assert (more, total) == ("one more", "41")


def test_imports_stay_light() -> None:
    code = "import sys; from memograft import VectorStore; print({'torch', 'faiss', 'sklearn'} & set(sys.modules))"
    assert python(code).stdout.strip() == "set()"


def test_json_metadata_comes_back_equal(folder) -> None:
    metadata = {"a": [1, {"b": None}], "ü": "Zoë \0 \u2028", "n": 12345678901234567890, "f": 0.1, "t": True, "": ""}
    with VectorStore.open(folder) as store:
        store.add([Document("text", "json", metadata)])
        assert store.get(["json"])[0].metadata == metadata
        assert json.loads(json.dumps(metadata)) == metadata
