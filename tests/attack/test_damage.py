"""Flipped bytes in a saved memory, a datastore or a vector store are reported or harmless, never returned as data."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from memograft import Datastore, Document, Engine, LexicalEmbedder, MemoryHandle, VectorStore
from memograft.cli.app import app
from memograft.cli.check import check
from memograft.errors import MemograftError, MemoryFormatError, StoreCorruptError
from test_datastore import new, synthetic
from test_engine import FACTS
from test_memory_handle import LORA, resealed

FLIPS = 25  # per file
DOCUMENTS = [Document(f"passage {i} about topic{i % 7}", str(i), {"i": i, "odd": bool(i % 2)}) for i in range(40)]


@contextmanager
def flipped(file: Path, place: int, mask: int) -> Iterator[None]:
    """Change one byte of a file temporarily."""
    data = file.read_bytes()
    file.write_bytes(data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :])
    try:
        yield
    finally:
        file.write_bytes(data)


def memory_says(engine: Engine, folder: Path) -> object:
    handle = MemoryHandle.load(folder, engine._backbone)
    assert handle.adapter is not None
    weights = [
        (name, t.tolist()) for part in (handle.adapter.lora_a, handle.adapter.lora_b) for name, t in part.items()
    ]
    return handle.id, handle.documents, handle.settings, handle.report, sorted(weights)


def datastore_says(_: Engine, folder: Path) -> object:
    with Datastore.open(folder, read_only=True) as store:
        found = [store.nearest(np.full((2, 16), x, np.float32), 4, heads) for x in (0, 2) for heads in (1, 2)]
        sources = [store.source(int(n)) for n in found[0].sources.flat]
        return store.header, store.ids(), sources, [array.tolist() for each in found for array in each]


def vector_store_says(_: Engine, folder: Path) -> object:
    with VectorStore.open(folder, read_only=True) as store:
        hits = store.search("topic3", k=5) + store.search("topic4", k=3, where={"odd": True}, mode="text")
        return list(store), hits, store.vectors(["3", "17"]).tolist(), store.count({"i": {"$gt": 30}})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, models: Any, tokenizer: Any) -> Path:
    """A folder of each kind."""
    made = tmp_path_factory.mktemp("whole")
    with Engine(models(), tokenizer) as engine:
        engine.memorize([Document(FACTS[0], metadata={"page": 3})], LORA).save(made / "memory")
    with new(made / "datastore", "sq8") as store:
        store.extend(*synthetic(1000))
        store.extend(*synthetic(100, prefix="t"))
        store.delete(["s3"])
    with VectorStore(LexicalEmbedder(), made / "vector store") as passages:
        passages.add(DOCUMENTS)
        passages.delete(["5"])
    return made


@pytest.fixture
def copy(folders: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders, tmp_path / "copy"))


SAYS: dict[str, Callable[[Engine, Path], object]] = {
    "memory": memory_says,
    "datastore": datastore_says,
    "vector store": vector_store_says,
}


@pytest.mark.parametrize("kind", SAYS)
def test_a_byte_that_flips_is_named_or_harmless(
    engine: Engine, copy: Path, kind: str, rng: random.Random, tally: Counter[str]
) -> None:
    folder = copy / kind
    truth = SAYS[kind](engine, folder)
    assert check(folder, quiet=True)["damaged"] == {}
    named = 0
    for file in sorted(file for file in folder.iterdir() if file.stat().st_size):
        for _ in range(FLIPS):
            place, mask = rng.randrange(file.stat().st_size), rng.randrange(1, 256)
            with flipped(file, place, mask):
                damaged = check(folder, quiet=True)["damaged"]
                try:
                    said = SAYS[kind](engine, folder)
                except MemograftError:
                    said = None
                assert damaged.keys() <= {str(file)}, "another file was blamed"
                assert damaged or said == truth, (file.name, place, mask)
                # files that are too large to be compared at opening, or are for other programs
                if not file.name.startswith(("keys-", "adapter_config")):
                    assert said in (None, truth), (file.name, place, mask)
            named += bool(damaged)
            tally.update(flips=1, named=bool(damaged))
    assert named > FLIPS, "nothing was damaged, so nothing is proved"


def run(*args: object, code: int = 0) -> list[str]:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(a) for a in args])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output.splitlines()


def flip(file: Path) -> Path:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file


@pytest.mark.parametrize("kind", SAYS)
def test_the_command_has_a_line_for_each_damaged_file(copy: Path, kind: str) -> None:
    folder = copy / kind
    assert run("check", folder) == [f"{folder}: a {kind}, nothing is damaged"]
    files = {
        "memory": ["adapter_model.safetensors", "adapter_config.json"],
        "datastore": ["keys-0.f32", "values-0.i32", "sources.jsonl", "index-sq8-0-1000-1-0.faiss"],
        "vector store": ["vectors-1.faiss"],
    }[kind]
    damaged = [str(flip(folder / name)) for name in files]
    lines = run("check", folder, code=1)
    assert len(lines) == len(files)
    assert all(line.startswith(file) for line, file in zip(lines, damaged, strict=True))
    told = json.loads(run("check", folder, "--json", code=1)[0])
    assert (told["kind"], sorted(told["damaged"])) == (kind, sorted(damaged))
    for name in files:
        (folder / name).unlink()
    assert len(run("check", folder, code=1)) == len(files)


def test_the_command_reads_every_memory_of_a_bank(copy: Path) -> None:
    bank = copy / "bank"
    for name in ("one", "two"):
        shutil.copytree(copy / "memory", bank / name)
    (line,) = run("check", bank)
    assert line == f"{bank}: a bank, nothing is damaged"
    damaged = flip(bank / "two" / "adapter_model.safetensors")
    (line,) = run("check", bank, code=1)
    assert line.startswith(str(damaged))


def test_the_command_wants_a_folder_of_ours(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        (line,) = run("check", folder, code=1)
        assert "must be a saved memory, a bank, a gist, a MAC or its bank, a datastore or a vector store, and" in line


# memories ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(engine: Engine, copy: Path, number: float) -> None:
    from safetensors.torch import load_file, save_file

    file = copy / "memory" / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = number
    save_file(tensors, file)
    resealed(file.parent)
    with pytest.raises(MemoryFormatError, match=r"safetensors is damaged \(.*lora_A.* must be a matrix of finite num"):
        engine.load_memory(file.parent)
    assert "must be a matrix of finite numbers" in run("check", file.parent, code=1)[0]


# datastores -------------------------------------------------------------------------------------------------------


def of_before(folder: Path) -> Path:
    """Turn it into an older datastore without checksums."""
    header = json.loads((folder / "header.json").read_text())
    del header["checksum"], header["checksums"]
    (folder / "header.json").write_text(json.dumps(header))
    return folder


def test_verify_names_every_damaged_file_while_the_rest_goes_on(copy: Path) -> None:
    with Datastore.open(copy / "datastore") as store:
        assert store.verify() == []
        files = [flip(copy / "datastore" / name) for name in ("keys-0.f32", "positions-0.i32")]
        with pytest.raises(StoreCorruptError) as caught:
            store.verify()
        assert [line.split(" cannot")[0] for line in str(caught.value).splitlines()] == [str(file) for file in files]
        with pytest.raises(StoreCorruptError, match=r"keys-0\.f32 .*its checksum is wrong"):
            store.compact(progress=False)  # a copy would get a matching checksum
    with pytest.raises(StoreCorruptError, match=r"positions-0\.i32 .*its checksum is wrong"):
        Datastore.open(copy / "datastore", read_only=True)


def test_checksums_go_on_through_everything_that_changes_a_datastore(copy: Path, engine: Engine) -> None:
    folder = copy / "datastore"
    with open(folder / "keys-0.f32", "ab") as stream:
        stream.write(b"left by a crash")
    with Datastore.open(folder) as store:
        store.extend(*synthetic(50, prefix="u"))
        store._files.append(synthetic(10)[0])
        store._files.forget()  # as after an error
        store.extend(*synthetic(50, prefix="v"))
        assert store.verify() == []
        store.delete(["u1"])
        store.compact(progress=False)
        store.extend(*synthetic(50, prefix="w"))
        assert store.verify() == []
        copied = store.save(copy / "saved")
    assert run("check", copied) == [f"{copied}: a datastore, nothing is damaged"]


def test_a_damaged_index_is_built_anew_by_a_writer(copy: Path, engine: Engine) -> None:
    folder = copy / "datastore"
    truth = datastore_says(engine, folder)
    (index,) = folder.glob("index-*")
    for damage in (flip, Path.unlink):
        damage(index)
        with pytest.raises(
            StoreCorruptError, match="open the datastore for writing and search it, which builds the index"
        ):
            datastore_says(engine, folder)
        with Datastore.open(folder) as store:
            store.prepare()
            assert store.verify() == []
            index = folder / store.header.indexes["1"]["files"][0]["name"]
    assert datastore_says(engine, folder)[1:3] == truth[1:3]  # type: ignore[index]


def test_a_datastore_of_before_has_none_until_it_is_compacted(copy: Path, engine: Engine) -> None:
    folder = copy / "datastore"
    truth = datastore_says(engine, folder)
    with Datastore.open(of_before(folder)) as store:
        assert [file.name for file in store.verify()][-1] == "sources.jsonl"
        assert "from before there were checksums: keys-0.f32, values-0.i32" in run("check", folder)[0]
        assert datastore_says(engine, folder)[1:] == truth[1:]  # type: ignore[index]
        store.extend(*synthetic(50, prefix="u"))
        assert len(store.verify()) == 5
        store.compact(progress=False)
        assert store.verify() == []
    assert run("check", folder)[0].endswith("nothing is damaged")


def test_sources_of_before_that_are_not_there(copy: Path) -> None:
    folder = of_before(copy / "datastore")
    np.memmap(folder / "sources-0.i32", "<i4", "r+")[7] = 10**6
    with pytest.raises(StoreCorruptError, match=r"sources-0\.i32 .*it refers to sources that do not exist"):
        Datastore.open(folder, read_only=True)
    assert "it refers to sources that do not exist" in run("check", folder, code=1)[0]


# vector stores ----------------------------------------------------------------------------------------------------


def sql(folder: Path, *statements: str) -> Path:
    connection = sqlite3.connect(folder / "passages.sqlite3")
    connection.executescript(";".join(statements))
    connection.close()
    return folder


def test_a_text_or_a_vector_that_changed_is_not_served(copy: Path) -> None:
    folder = copy / "vector store"
    sql(folder, "UPDATE passages SET text = 'a lie' WHERE id = '3'")
    with VectorStore.open(folder) as store:
        assert store.get(["4"])[0].text == DOCUMENTS[4].text
        for serve in (lambda: store.get(["3"]), lambda: store.search("topic3", k=40), lambda: list(store)):
            with pytest.raises(StoreCorruptError, match=r"it is damaged \(passage '3' is not what was stored"):
                serve()
        store.add([DOCUMENTS[3]])
        assert store.verify() == []
    sql(folder, "UPDATE vectors SET vector = zeroblob(4096) WHERE seq = 5")
    with VectorStore.open(folder) as store:
        with pytest.raises(StoreCorruptError, match="the vector of passage number 5 is not what was stored"):
            store.vectors(["4"])
        with pytest.raises(StoreCorruptError, match="passage '4' is not what was stored"):
            store.verify()
    assert "passage '4' is not what was stored" in run("check", folder, code=1)[0]


def test_a_type_of_a_column_that_changed_is_refused(copy: Path) -> None:
    """SQLite accepts any word as a type, and then compares ids as numbers and finds none."""
    file = copy / "vector store" / "passages.sqlite3"
    data = file.read_bytes()
    assert data.count(b"id TEXT NOT NULL UNIQUE") == 1
    file.write_bytes(data.replace(b"id TEXT NOT NULL UNIQUE", b"id TEXP NOT NULL UNIQUE"))
    with pytest.raises(StoreCorruptError, match="its tables are not those of a store"):
        VectorStore.open(file.parent)


def test_settings_that_changed_are_refused(copy: Path) -> None:
    folder = sql(copy / "vector store", """UPDATE settings SET value = '{"kind": "ivf"}' WHERE key = 'index'""")
    with pytest.raises(StoreCorruptError, match=r"its settings are damaged \(their checksum is wrong"):
        VectorStore.open(folder)
    sql(folder, "DELETE FROM settings WHERE key = 'checksum'", """UPDATE settings SET value = '{"k": 1}'""")
    with pytest.raises(StoreCorruptError, match=r"its settings are damaged \(there is no 'embedder' of this form"):
        VectorStore.open(folder)


def test_a_vector_store_of_before_has_none_until_it_is_compacted(copy: Path, engine: Engine) -> None:
    folder = copy / "vector store"
    truth = vector_store_says(engine, folder)
    sql(folder, "DROP TABLE checksums", "DELETE FROM settings WHERE key = 'checksum'")
    with VectorStore.open(folder, read_only=True) as store:
        assert [file.name for file in store.verify()] == ["passages.sqlite3"]
    assert vector_store_says(engine, folder) == truth
    assert (
        "from before there were checksums: passages.sqlite3 could not be compared; compact it"
        in run("check", folder)[0]
    )
    with VectorStore.open(folder) as store:
        store.add(["more"])
        assert len(store.verify()) == 1
        store.compact()
        assert store.verify() == []
    assert run("check", folder)[0].endswith("nothing is damaged")


def test_a_store_in_memory_is_verified_too() -> None:
    with VectorStore() as store:
        store.add(DOCUMENTS)
        assert store.verify() == []
        store._database.rows("UPDATE passages SET metadata = '{}' WHERE id = '3'")
        with pytest.raises(StoreCorruptError, match="passage '3' is not what was stored"):
            store.verify()
