"""One store in several processes: a reader sees one state at a time while another writes, and forks are refused."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from forks import in_a_fork
from memograft.errors import StoreError
from memograft.passages.vector_store import VectorStore
from store_doubles import NumberEmbedder, numbered

BELOW_20 = {"n": {"$lt": 20}}
SEARCHES = {
    "search": lambda store, n: [hit.document for hit in store.search(str(n), k=20)],
    "search with a filter": lambda store, n: [
        hit.document for hit in store.search(str(n), k=20, where={"n": {"$lt": 20}})
    ],
    "mmr": lambda store, n: [hit.document for hit in store.mmr(str(n), k=20, fetch_k=20)],
    "get": lambda store, n: store.get([f"id{i}" for i in range(20)]),
    "vectors": lambda store, n: store.vectors([f"id{i}" for i in range(20)]),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_reader_finds_everything_while_all_of_it_is_replaced(tmp_path: Path, name: str) -> None:
    """Two connections behave like two processes."""
    writer = VectorStore(NumberEmbedder(), tmp_path)
    writer.add(numbered(range(20), round=0))
    found, rounds, stop = [], [0], threading.Event()

    def write() -> None:
        while not stop.is_set():
            rounds[0] += 1
            writer.add(numbered(range(20), round=rounds[0]))

    with VectorStore(NumberEmbedder(), tmp_path, read_only=True) as reader:
        thread = threading.Thread(target=write)
        thread.start()
        try:
            while rounds[0] < 60:
                found.append(SEARCHES[name](reader, len(found) % 20))
        finally:
            stop.set()
            thread.join()
    writer.close()
    assert {len(documents) for documents in found} == {20}
    if name != "vectors":
        assert {len({document.metadata["round"] for document in documents}) for documents in found} == {1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.search("1"),
        lambda store: store.mmr("1"),
        lambda store: store.get(["id1"]),
        lambda store: store.vectors(["id1"]),
        len,
        list,
        lambda store: store.add(numbered([7])),
        lambda store: store.delete(["id1"]),
        lambda store: store.compact(),
        lambda store: store.persist(),
    ],
)
def test_a_fork_may_not_use_its_parents_store(
    tmp_path: Path, call: Callable[[VectorStore], object], read_only: bool
) -> None:
    VectorStore(NumberEmbedder(), tmp_path).close()

    def child() -> None:
        with pytest.raises(
            StoreError, match=rf"by the process {parent}, of which {os.getpid()} is a fork; open it again"
        ):
            call(store)
        store.close()

    parent = os.getpid()
    with VectorStore(NumberEmbedder(), tmp_path, read_only=read_only) as store, store._lock.writing():
        assert in_a_fork(child) == 0  # even if another thread is writing


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_opens_the_store_again_and_follows_its_parent(tmp_path: Path) -> None:
    asked, told = os.pipe(), os.pipe()
    with VectorStore(NumberEmbedder(), tmp_path) as store:
        store.add(numbered([1]))

        def child() -> None:
            with VectorStore(NumberEmbedder(), tmp_path, read_only=True) as own:
                assert len(own) == 1
                os.write(asked[1], b".")
                os.read(told[0], 1)
                assert {hit.document.id for hit in own.search("2")} == {"id1", "id2"}

        def write() -> None:
            os.read(asked[0], 1)
            store.add(numbered([2]))
            os.write(told[1], b".")

        thread = threading.Thread(target=write)
        thread.start()
        assert in_a_fork(child) == 0
        thread.join()
        store.add(numbered([3]))
        assert len(store.search("3", k=9)) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_has_its_own_copy_of_a_store_in_memory() -> None:
    store = VectorStore(NumberEmbedder())
    store.add(numbered([1]))

    def child() -> None:
        store.add(numbered([2]))
        assert len(store.search("1")) == 2

    assert in_a_fork(child) == 0
    assert len(store.search("1")) == 1
