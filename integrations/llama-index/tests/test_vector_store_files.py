"""Stores on disk: reopened, copied by StorageContext.persist, and shared by two processes."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.llms.memograft.embedding import MemograftEmbedding
from llama_index.llms.memograft.vector_store import MemograftVectorStore
from memograft.errors import SettingsError, StoreLockedError
from memograft.passages.vector_store import VectorStore

PAGES = [
    Document(text="Paris is the capital of France.", id_="fr", metadata={"land": "France"}),
    Document(text="Bergamot is a citrus fruit.", id_="bergamot"),
    Document(text="Lisbon is the capital of Portugal.", id_="pt", metadata={"land": "Portugal"}),
]


def node(n: int) -> TextNode:
    return TextNode(id_=f"n{n}", text=f"text {n}", embedding=[1.0, float(n)], metadata={"n": n})


def nearest(store: MemograftVectorStore, n: int) -> str:
    (best,) = store.query(VectorStoreQuery([1.0, float(n)])).ids
    return best


def test_a_folder_opens_again(tmp_path: Path) -> None:
    with MemograftVectorStore(tmp_path / "s") as store:
        assert not (tmp_path / "s").exists()
        store.add([node(n) for n in range(10)])
        before = store.get_nodes()
    with MemograftVectorStore(str(tmp_path / "s"), index="hnsw") as store:
        assert store.get_nodes() == before
        assert nearest(store, 4) == "n4"
        with pytest.raises(SettingsError, match="must have an embedding of 2 numbers, as the other nodes in the store"):
            store.add([TextNode(text="x", embedding=[1.0] * 3)])
        store.delete_nodes(["n4"])
    with MemograftVectorStore(tmp_path / "s", read_only=True) as store:
        assert len(store.get_nodes()) == 9
        assert nearest(store, 7) == "n7"


def test_it_describes_itself_without_its_contents(tmp_path: Path) -> None:
    with MemograftVectorStore(tmp_path / "s", index="ivf") as store:
        store.add([node(1)])
        described = store.to_dict()
    assert described["path"] == str(tmp_path / "s")
    assert described["class_name"] == "MemograftVectorStore"
    with MemograftVectorStore.from_dict(described) as again:
        assert again.index == "ivf"
        assert again.get_nodes(["n1"])[0].text == "text 1"


def test_a_store_of_the_core_opens_with_its_own_embedder(tmp_path: Path) -> None:
    """`memograft index` creates a folder, LlamaIndex reads and extends it, `memograft ask` searches it."""
    with VectorStore(path=tmp_path / "s") as core:
        core.add([page.text for page in PAGES[:2]])
    embedding = MemograftEmbedding()
    with MemograftVectorStore(tmp_path / "s") as store:
        index = VectorStoreIndex.from_vector_store(store, embed_model=embedding)
        index.insert(PAGES[2])
        retriever = index.as_retriever(similarity_top_k=1)
        assert retriever.retrieve("capital of France")[0].text == PAGES[0].text
    with VectorStore.open(tmp_path / "s") as core:
        best = core.search("the capital of Portugal", k=1)[0].document
        assert best.text == PAGES[2].text
        assert best.metadata["doc_id"] == "pt"
    with MemograftVectorStore(tmp_path / "new", embedder=embedding.embedder) as store:
        store.add([TextNode(text="Figs are sweet.", embedding=embedding.get_text_embedding("Figs are sweet."))])
    with VectorStore.open(tmp_path / "new") as core:
        assert core.search("sweet figs")[0].score > 0.5


def test_storage_context_round_trip_in_memory(tmp_path: Path) -> None:
    embedding = MemograftEmbedding()
    store = MemograftVectorStore()
    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex.from_documents(PAGES, context, embed_model=embedding)
    context.persist(str(tmp_path))
    index.delete_ref_doc("bergamot")
    index.insert(Document(text="Figs are sweet.", id_="fig"))
    context.persist(str(tmp_path))  # again, over the first
    folder = tmp_path / "default__vector_store.json"
    with MemograftVectorStore.from_persist_dir(str(tmp_path)) as loaded:
        assert loaded.path == str(folder)
        assert {n.node_id: n.hash for n in loaded.get_nodes()} == {n.node_id: n.hash for n in store.get_nodes()}
        again = StorageContext.from_defaults(vector_store=loaded, persist_dir=str(tmp_path))
        back = load_index_from_storage(again, embed_model=embedding)
        assert back.as_retriever(similarity_top_k=1).retrieve("sweet figs")[0].text == "Figs are sweet."
        with pytest.raises(StoreLockedError, match="one writer at a time"):
            context.persist(str(tmp_path))
        back.delete_ref_doc("fig")
        again.persist(str(tmp_path))
    with MemograftVectorStore.from_persist_path(str(folder), read_only=True) as loaded:
        assert {n.ref_doc_id for n in loaded.get_nodes()} == {"fr", "pt"}
        StorageContext.from_defaults(vector_store=loaded).persist(str(tmp_path / "other"))  # stays where it is
    assert len(store.get_nodes()) == 3


def test_storage_context_round_trip_of_a_folder(tmp_path: Path) -> None:
    embedding = MemograftEmbedding()
    with MemograftVectorStore(tmp_path / "vectors") as store:
        context = StorageContext.from_defaults(vector_store=store)
        VectorStoreIndex.from_documents(PAGES, context, embed_model=embedding)
        context.persist(str(tmp_path / "rest"))
        assert list((tmp_path / "vectors").glob("vectors-*.faiss")), "the index file is written"
        assert not (tmp_path / "rest" / "default__vector_store.json").exists()
    with MemograftVectorStore(tmp_path / "vectors") as store:
        context = StorageContext.from_defaults(vector_store=store, persist_dir=str(tmp_path / "rest"))
        index = load_index_from_storage(context, embed_model=embedding)
        assert index.as_retriever(similarity_top_k=1).retrieve("citrus")[0].node.ref_doc_id == "bergamot"


def test_an_empty_store_round_trip(tmp_path: Path) -> None:
    StorageContext.from_defaults(vector_store=MemograftVectorStore()).persist(str(tmp_path))
    with MemograftVectorStore.from_persist_dir(str(tmp_path)) as store:
        assert store.get_nodes() == []
        store.add([node(1)])


def hold(folder: str, ready, done) -> None:
    with MemograftVectorStore(folder) as store:
        store.add([node(1), node(2)])
        ready.put("added")
        while (order := done.get(timeout=60)) != "stop":
            store.add([node(order)])
            ready.put("added")


def test_two_processes(tmp_path: Path) -> None:
    """One process writes and another reads; a second writer is refused until the first has closed."""
    folder = str(tmp_path / "s")
    waiting = MemograftVectorStore(folder)  # opened before there was anything
    assert waiting.get_nodes() == []
    spawn = multiprocessing.get_context("spawn")
    ready, done = spawn.Queue(), spawn.Queue()
    other = spawn.Process(target=hold, args=(folder, ready, done))
    other.start()
    try:
        assert ready.get(timeout=60) == "added"
        for use in (lambda: waiting.add([node(9)]), waiting.get_nodes, lambda: MemograftVectorStore(folder)):
            with pytest.raises(StoreLockedError, match="one writer at a time may open a store"):
                use()
        with MemograftVectorStore(folder, read_only=True) as reader:
            assert nearest(reader, 2) == "n2"
            done.put(7)
            assert ready.get(timeout=60) == "added"
            assert nearest(reader, 7) == "n7"
    finally:
        done.put("stop")
        other.join(timeout=60)
    assert other.exitcode == 0
    with waiting:
        waiting.add([node(9)])
        assert [n.node_id for n in waiting.get_nodes()] == ["n1", "n2", "n7", "n9"]


def test_importing_loads_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "faiss", "sklearn", "sentence_transformers"]
    modules = "llama_index.llms.memograft.vector_store, llama_index.llms.memograft.embedding"
    code = (
        f"import sys, llama_index.core; had = set(sys.modules); import {modules}; "
        f"print([m for m in {heavy} if m in set(sys.modules) - had])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
