"""Folders of langchain_community's FAISS store are converted; malicious and damaged ones are refused."""

from __future__ import annotations

import inspect
import os
import pickle
import pickletools
import sys
import warnings
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from langchain_core.documents import Document
from memograft.errors import SettingsError, StoreCorruptError, StoreError
from memograft.storage.plain_data import Refused, plain_data
from vectorstore_doubles import Numbers

from langchain_memograft import MemograftVectorStore
from langchain_memograft._faiss_folder import read_faiss_folder

with warnings.catch_warnings():
    # langchain_community says at every import that it is no longer maintained; its folders are why we are here.
    warnings.simplefilter("ignore", DeprecationWarning)
    from langchain_community.docstore.in_memory import InMemoryDocstore
    from langchain_community.vectorstores import FAISS
    from langchain_community.vectorstores.utils import DistanceStrategy

PAGES = [
    Document("0 zero", metadata={"n": 0, "big": 2**70, "pi": 3.14, "none": None, "yes": True, "list": [1, ["é", {}]]}),
    Document("1 one", metadata={}),
    Document("2 zwei 日本語", metadata={"nested": {"a": {"b": [1, 2]}}, "tuple": (1, 2)}),
    *(Document(f"{n} more", metadata={"n": n, "source": "same.txt"}) for n in range(3, 40)),
]
NAMES = [f"id{n}" for n in range(40)]


def saved(folder: Path, documents: list[Document] = PAGES, **options: Any) -> Numbers:
    """Write a folder with langchain_community's store, and return its embeddings."""
    numbers = Numbers()
    FAISS.from_documents(documents, numbers, ids=NAMES[: len(documents)], **options).save_local(str(folder))
    numbers.calls.clear()
    return numbers


# what was really written ------------------------------------------------------------------------------------------


def test_a_folder_is_converted_and_nothing_is_embedded_again(tmp_path: Path) -> None:
    numbers = saved(tmp_path)
    with MemograftVectorStore.from_faiss_folder(tmp_path, numbers) as store:
        assert numbers.calls == ["query"]  # for the length of a vector
        assert len(store.store) == 40
        expected = [
            Document(d.page_content, id=name, metadata=d.metadata) for d, name in zip(PAGES, NAMES, strict=True)
        ]
        expected[2].metadata["tuple"] = [1, 2]  # JSON knows no tuples
        assert store.get_by_ids(NAMES) == expected
        for n in range(40):
            assert store.similarity_search_with_score(f"{n} ?", k=1) == [(expected[n], pytest.approx(1, abs=1e-6))]
        assert len(store.similarity_search("7 ?", k=9, filter={"n": {"$gte": 35}})) == 5


@pytest.mark.parametrize("strategy", list(DistanceStrategy))
@pytest.mark.parametrize("normalised", [False, True])
def test_it_ranks_as_the_old_store_did(tmp_path: Path, strategy: Any, normalised: bool) -> None:
    numbers = Numbers()
    numbers.table /= np.linalg.norm(numbers.table, axis=1, keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that normalising is ignored for inner products
        old = FAISS.from_documents(PAGES, numbers, ids=NAMES, distance_strategy=strategy, normalize_L2=normalised)
    old.save_local(str(tmp_path), index_name="other")
    with MemograftVectorStore.from_faiss_folder(tmp_path, numbers, index_name="other") as store:
        for n in (0, 17):
            ours = [document.page_content for document in store.similarity_search(f"{n} ?", k=10)]
            assert ours == [document.page_content for document in old.similarity_search(f"{n} ?", k=10)]


@pytest.mark.parametrize("kind", ["Flat", "HNSW8", "IVF4,Flat", "SQ8", "PCA8,Flat"])
def test_other_indexes(tmp_path: Path, kind: str) -> None:
    numbers = Numbers()
    vectors = numbers.table[:40].astype(np.float32)
    index = faiss.index_factory(16, kind)
    index.train(np.concatenate([vectors] * 5))
    index.add(vectors)
    documents = {name: Document(page.page_content) for name, page in zip(NAMES, PAGES, strict=True)}
    old = FAISS(numbers, index, InMemoryDocstore(documents), dict(enumerate(NAMES)))
    old.save_local(str(tmp_path))
    with MemograftVectorStore.from_faiss_folder(tmp_path, numbers) as store:
        assert len(store.store) == 40
        assert [document.id for document in store.similarity_search("7 ?", k=1)] == ["id7"]


async def test_after_deletions_onto_the_disk_twice(tmp_path: Path) -> None:
    numbers = Numbers()
    old = FAISS.from_documents(PAGES, numbers, ids=NAMES)
    old.delete(["id0", "id7"])
    old.add_documents([Document("50 late")], ids=["late"])
    old.save_local(str(tmp_path / "old"))
    for _ in range(2):
        store = await MemograftVectorStore.afrom_faiss_folder(tmp_path / "old", numbers, path=tmp_path / "new")
        await store.aclose()
    with MemograftVectorStore(numbers, path=tmp_path / "new") as store:
        assert len(store.store) == 39
        assert [d.id for d in store.similarity_search("50 ?", k=1) + store.similarity_search("8 ?", k=1)] == [
            "late",
            "id8",
        ]


def test_an_empty_text_and_an_empty_store(tmp_path: Path) -> None:
    numbers = saved(tmp_path / "blank", [Document("0 zero"), Document(" ")])
    assert len(MemograftVectorStore.from_faiss_folder(tmp_path / "blank", numbers).store) == 2
    FAISS(numbers, faiss.IndexFlatL2(16), InMemoryDocstore(), {}).save_local(str(tmp_path / "empty"))
    assert len(MemograftVectorStore.from_faiss_folder(tmp_path / "empty", numbers).store) == 0


def rewritten(folder: Path, value: Any, protocol: int = 4) -> None:
    (folder / "index.pkl").write_bytes(pickle.dumps(value, protocol))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_since_python_2(tmp_path: Path, protocol: int) -> None:
    numbers = saved(tmp_path)
    data = pickle.loads((tmp_path / "index.pkl").read_bytes())
    if protocol < 4:  # there a set is a call, so what pydantic keeps in one is left out
        for document in data[0]._dict.values():
            object.__setattr__(document, "__pydantic_fields_set__", None)
    rewritten(tmp_path, data, protocol)
    with MemograftVectorStore.from_faiss_folder(tmp_path, numbers) as store:
        assert len(store.store) == 40


# what is refused --------------------------------------------------------------------------------------------------


class Bomb:
    """An object that would run a command when unpickled."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.made = (call, arguments)

    def __reduce__(self) -> Any:
        return self.made


def bomb_in(place: str, bomb: Any) -> Any:
    documents = {"a": Document("0 zero"), "b": Document("1 one")}
    ids = {0: "a", 1: "b"}
    match place:
        case "the whole":
            return bomb
        case "beside":
            return InMemoryDocstore(documents), ids, bomb
        case "metadata":
            documents["b"].metadata = {"x": [bomb]}
        case "document":
            documents["b"] = bomb
        case "text":
            documents["b"].__dict__["page_content"] = bomb
    return InMemoryDocstore(documents), ids


PLACES = ["the whole", "beside", "metadata", "document", "text"]


@pytest.mark.parametrize(("protocol", "place"), [(2, "the whole"), *((p, place) for p in (4, 5) for place in PLACES)])
def test_code_in_it_is_named_and_never_run(tmp_path: Path, protocol: int, place: str) -> None:
    numbers = saved(tmp_path, PAGES[:2])
    witness = tmp_path / "ran"
    rewritten(tmp_path, bomb_in(place, Bomb(os.system, f"touch {witness}")), protocol)
    kept = tmp_path / "new"
    text = rf"index.pkl names {os.system.__module__}.system, which is no plain data; nothing of it was executed"
    with pytest.raises(StoreCorruptError, match=text):
        MemograftVectorStore.from_faiss_folder(tmp_path, numbers, path=kept)
    assert not witness.exists()
    assert not kept.exists()
    pickle.loads((tmp_path / "index.pkl").read_bytes())
    assert witness.exists()  # it would have worked


def test_no_module_is_imported(tmp_path: Path) -> None:
    numbers = saved(tmp_path, PAGES[:2])
    sys.modules.pop("this", None)
    (tmp_path / "index.pkl").write_bytes(b"\x80\x04\x8c\x04this\x8c\x01s\x93.")
    with pytest.raises(StoreCorruptError, match=r"names this\.s, which is no plain data"):
        MemograftVectorStore.from_faiss_folder(tmp_path, numbers)
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "value", [{1, 2}, b"bytes", bytearray(b"x"), 1j, Path("x"), float("nan"), {7: "x"}, frozenset()]
)
def test_metadata_that_is_not_json(tmp_path: Path, value: Any) -> None:
    numbers = saved(tmp_path, PAGES[:2])
    data = bomb_in("metadata", value)
    rewritten(tmp_path, data)
    with pytest.raises(
        StoreCorruptError, match=r"index.pkl .*; nothing of it was executed or kept. Save the folder again"
    ):
        MemograftVectorStore.from_faiss_folder(tmp_path, numbers)


def test_every_truncation_and_many_changed_bytes(tmp_path: Path) -> None:
    """For all bytes, the result is documents or StoreCorruptError."""
    saved(tmp_path, PAGES[:4])
    file = tmp_path / "index.pkl"
    whole = file.read_bytes()
    for size in range(0, len(whole) - 1, 17):
        file.write_bytes(whole[:size])
        with pytest.raises(StoreCorruptError, match=r"index.pkl is damaged"):
            read_faiss_folder(tmp_path)
    rng = np.random.default_rng(0)
    read = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        file.write_bytes(damaged)
        try:
            read += len(read_faiss_folder(tmp_path).documents) == 4
        except StoreCorruptError:
            continue
    assert 0 < read < 300


@pytest.mark.parametrize("size", [0, 1, 10, 40, 100, 200])
def test_a_truncated_index(tmp_path: Path, size: int) -> None:
    numbers = saved(tmp_path, PAGES[:4])
    file = tmp_path / "index.faiss"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(StoreCorruptError, match=r"FAISS cannot read .*index.faiss .*; restore it from a backup"):
        MemograftVectorStore.from_faiss_folder(tmp_path, numbers)


def test_files_that_do_not_fit_each_other(tmp_path: Path) -> None:
    numbers = saved(tmp_path)
    saved(tmp_path / "less", PAGES[:39])
    (tmp_path / "less" / "index.faiss").replace(tmp_path / "index.faiss")
    with pytest.raises(StoreCorruptError, match=r"index.faiss holds 39 vectors, and index.pkl has 40 documents"):
        MemograftVectorStore.from_faiss_folder(tmp_path, numbers)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (({"a": 1}, {0: "a"}), "is not a docstore and the ids of its vectors"),
        ((InMemoryDocstore({"a": Document("x")}), {1: "a"}), "numbers its 1 vectors in another way than 0, 1, 2"),
        (
            (InMemoryDocstore({"a": Document("x")}), {0: "b"}),
            "has 1 documents and 1 vectors, which are not of the same ids",
        ),
        ((InMemoryDocstore({"a": Document("x")}), {}), "has 1 documents and 0 vectors, which are not of the same ids"),
        ((InMemoryDocstore({"a": Document("x")}), {0: "a", 1: "a"}), "ids that are no strings, or the same one twice"),
        ((InMemoryDocstore({7: Document("x")}), {0: 7}), "ids that are no strings"),  # type: ignore[dict-item]
        ((InMemoryDocstore({"a": "x"}), {0: "a"}), "something else than a document under the id 'a'"),  # type: ignore[dict-item]
        ((InMemoryDocstore({"a": Document("\ud800")}), {0: "a"}), "cannot be kept under the id 'a'"),
        (InMemoryDocstore(), "is not a docstore and the ids"),
    ],
)
def test_a_docstore_that_does_not_add_up(tmp_path: Path, value: Any, text: str) -> None:
    saved(tmp_path, PAGES[:1])
    rewritten(tmp_path, value)
    with pytest.raises(StoreCorruptError, match=text):
        read_faiss_folder(tmp_path)


def test_what_is_not_there_or_of_other_embeddings(tmp_path: Path) -> None:
    numbers = saved(tmp_path)
    with pytest.raises(
        StoreError, match=r"has other.pkl and other.faiss, and .*other.pkl is not there; check the path"
    ):
        MemograftVectorStore.from_faiss_folder(tmp_path, numbers, index_name="other")
    text = r"the vectors of .*index.faiss have 16 numbers each, got Numbers with 8; pass the embedding model that they"
    for _ in range(2):  # and the folder is free again
        with pytest.raises(SettingsError, match=text):
            MemograftVectorStore.from_faiss_folder(tmp_path, Numbers(8), path=tmp_path / "new")


def test_an_index_that_keeps_no_vectors(tmp_path: Path) -> None:
    numbers = saved(tmp_path)
    index = faiss.IndexIDMap(faiss.IndexFlatL2(16))
    index.add_with_ids(numbers.table[:40].astype(np.float32), np.arange(40))
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    with pytest.raises(
        StoreError, match=r"is a IndexIDMap, which does not give its vectors back; add the documents to a new"
    ):
        MemograftVectorStore.from_faiss_folder(tmp_path, numbers)


# the reader of plain data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_read_as_it_was_written(protocol: int) -> None:
    shared = ["shared"]
    value = [
        None,
        True,
        False,
        0,
        -1,
        255,
        70_000,
        -(2**40),
        2**200,
        1.5,
        "",
        "é" * 300,
        "x" * 70_000,
        (),
        (1,),
        (1, 2),
    ]
    value += [
        (1, 2, 3),
        (1, 2, 3, 4),
        [],
        [1],
        list(range(2000)),
        {},
        {"a": {"b": [1]}},
        {1: 2, None: 3},
        shared,
        shared,
    ]
    assert plain_data(pickle.dumps(value, protocol), {}) == value
    assert plain_data(pickletools.optimize(pickle.dumps(value, protocol)), {}) == value
    if protocol >= 4:
        assert plain_data(pickle.dumps({"a", 1}, protocol), {}) == {"a", 1}


def test_what_contains_itself_or_grows_without_end_is_refused(tmp_path: Path) -> None:
    circle: list[Any] = []
    circle.append(circle)
    many: Any = ["lol"]
    for _ in range(30):
        many = [many] * 10
    for value in (circle, many):
        rewritten(tmp_path, bomb_in("metadata", value))
        faiss.write_index(faiss.IndexFlatL2(4), str(tmp_path / "index.faiss"))
        with pytest.raises(StoreCorruptError, match="more than 100000 values, or is nested deeper than 50 levels"):
            read_faiss_folder(tmp_path)
    key: Any = ()
    for _ in range(100):
        key = (key, key)
    harmful = pickle.dumps(("key", key))[:-1] + b"}" + b"s."  # hashing it would take longer than the universe
    with pytest.raises(Refused, match=r"is damaged|has a tuple for a key"):
        plain_data(harmful, {})
    with pytest.raises(Refused, match="has a tuple for a key or in a set"):
        plain_data(b"\x80\x04}))s.", {})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "is damaged"),
        (b"garbage", "is damaged"),
        (b"\x80\x04K\x01K\x02.", "is damaged"),  # two things are left
        (b"\x80\x04.", "is damaged"),
        (b"\x80\x04h\x07.", "is damaged"),  # a memory never made
        (b"\x80\x04K\x01\x85", "is damaged"),  # no end
        (b"\x80\x04K\x01\x87.", "a tuple lacks its items"),
        (b"\x80\x04u.", "is damaged"),  # no mark
        (b"\x80\x04](K\x01e}b.", "a Record was expected, not a list"),
        (b"\x80\x04}]K\x01s.", "has a list for a key"),
        (b"\x80\x04]]K\x01s.", "is damaged"),
        (b"\x80\x04K\x01K\x02\x93.", "a str was expected, not a int"),
        (b"\x80\x04\x8c\x04kind\x8c\x01K\x93K\x01\x85\x81.", "makes a thing from arguments"),
        (b"\x80\x04\x8c\x04kind\x8c\x01K\x93)R.", "holds the instruction REDUCE, which builds more than plain data"),
        (b"cos\nsystem\n.", r"names os\.system, which is no plain data"),
        (b"(S'true'\nios\nsystem\n.", "holds the instruction STRING"),
        (b"\x80\x04Pwho\n.", "holds the instruction PERSID"),
        (b"\x80\x02\x82\x01.", "holds the instruction EXT1"),
        (b"\x80\x04B\xff\xff\xff\x7fx.", "is damaged"),  # says it is two gigabytes long
    ],
)
def test_damage_and_other_instructions(data: bytes, text: str) -> None:
    with pytest.raises(Refused, match=text):
        plain_data(data, {("kind", "K"): "thing"})


def test_the_reader_can_run_nothing() -> None:
    source = Path(inspect.getfile(plain_data)).read_text(encoding="utf-8")
    for word in ("import pickle\n", "importlib", "__import__", "eval(", "exec(", "getattr("):
        assert word not in source
