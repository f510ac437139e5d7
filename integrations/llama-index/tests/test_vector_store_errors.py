"""Errors of the vector store give the rule, the value and a remedy, and do not change the store."""

from __future__ import annotations

import copy
import datetime
import pickle

import pytest
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQuery, VectorStoreQueryMode
from llama_index.llms.memograft.vector_store import MemograftVectorStore
from memograft.errors import (
    EmbedderMismatchError,
    SettingsError,
    StoreCorruptError,
    StoreError,
    StoreLockedError,
    StoreReadOnlyError,
)
from memograft.passages.embedders import LexicalEmbedder

PICTURE = MediaResource(path="picture.png")


def good(id: str = "good", **more) -> TextNode:
    return TextNode(**{"id_": id, "text": "text", "embedding": [1.0, 2.0], **more})


def cyclic() -> dict:
    found: dict = {}
    found["self"] = found
    return found


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ("text", r"nodes\[1\] must be a node of LlamaIndex, got str; wrap it as TextNode\(text=...\)"),
        (good("bad", embedding=None), r"nodes\[1\] \(id 'bad'\) must have an embedding, got None; pass it through"),
        (good("bad", embedding=[1.0]), r"\(id 'bad'\) must have an embedding of 2 numbers, .* got 1; embed all nodes"),
        (good("bad", embedding=[]), r"must have an embedding of 2 numbers, as the other nodes in the store, got 0"),
        (good("bad", embedding=[1.0, float("nan")]), r"finite numbers, got NaN or infinity in row 1"),
        (
            ImageNode(id_="bad", embedding=[1, 2], image_url="x"),
            r"\(id 'bad'\) must be text, got ImageNode; keep images",
        ),
        (Node(image_resource=PICTURE, embedding=[1, 2]), r"must be text, got Node with image_resource; keep images"),
        (good("bad", metadata={"when": datetime.date.today()}), r"\(id 'bad'\) must be JSON, got date under 'when'"),
        (good("bad", metadata={"x": float("nan")}), r"must be JSON, got float under 'x'"),
        (good("bad", metadata={"x": object(), "doc_id": "y"}), r"must be JSON, got object under 'x'"),
        (good("bad", metadata={"x": cyclic()}), r"must be JSON, got dict under 'x'"),
        (
            good(
                "bad", relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="d", metadata={"x": object()})}
            ),
            r"nodes\[1\] \(id 'bad'\) must be JSON, got a TextNode that is not \(.*\); convert the values in its rel",
        ),
        (
            IndexNode(id_="bad", index_id="i", embedding=[1, 2], obj=object()),
            r"must be JSON, got a IndexNode that is not",
        ),
        (good("bad", text="lone \ud800"), r"\(id 'bad'\) must be Unicode text, and has lone surrogates"),
    ],
)
def test_a_bad_node_keeps_the_others_out(bad, text) -> None:
    store = MemograftVectorStore()
    store.add([good("old", metadata={"v": 1})])
    with pytest.raises(SettingsError, match=text):
        store.add([good("old", metadata={"v": 2}), bad])
    assert [node.metadata for node in store.get_nodes()] == [{"v": 1}]


def test_a_bad_first_node_does_not_settle_the_dimension() -> None:
    store = MemograftVectorStore()
    with pytest.raises(SettingsError, match=r"nodes\[0\] .* must have an embedding, got None"):
        store.add([good(embedding=None)])
    with pytest.raises(SettingsError, match=r"nodes\[1\] .* must have an embedding of 2 numbers"):
        store.add([good("a"), good("b", embedding=[1.0] * 3)])
    assert store.client is None
    store.add([good(embedding=[1.0] * 3)])


@pytest.mark.parametrize(
    ("query", "text"),
    [
        (VectorStoreQuery(), r"`query_embedding` must be an embedding, got None; query through VectorStoreIndex"),
        (VectorStoreQuery([1.0]), r"`vector` must have the shape \(2,\), got \(1,\)"),
        (VectorStoreQuery([1.0, float("inf")]), r"finite numbers, got NaN or infinity"),
        (
            VectorStoreQuery([1.0, 2.0], 0),
            r"`similarity_top_k` must be a whole number of at least 1, got 0; 2 is usual",
        ),
        (VectorStoreQuery([1.0, 2.0], None), r"`similarity_top_k` must be a whole number of at least 1, got None"),
        (
            VectorStoreQuery([1.0, 2.0], output_fields=["text"]),
            r"`output_fields` is not for this store, got \['text'\]",
        ),
        (VectorStoreQuery([1.0, 2.0], embedding_field="e"), r"`embedding_field` is not for this store, got 'e'"),
    ],
)
def test_bad_queries(query, text) -> None:
    store = MemograftVectorStore()
    store.add([good()])
    for mode in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR):
        query.mode = mode
        with pytest.raises(SettingsError, match=text):
            store.query(query)


MODES = ("default", "mmr", "hybrid", "text_search", "sparse")


@pytest.mark.parametrize("mode", [m for m in VectorStoreQueryMode if m.value not in MODES])
def test_other_modes_are_refused_by_name(mode) -> None:
    for store in (MemograftVectorStore(), MemograftVectorStore(embedder=LexicalEmbedder(64))):
        text = f"`mode` must be default, mmr, hybrid, text_search or sparse, got '{mode.value}'; pass one of these"
        with pytest.raises(SettingsError, match=text):
            store.query(VectorStoreQuery([1.0, 2.0], mode=mode))


def test_bad_options() -> None:
    store = MemograftVectorStore()
    store.add([good()])
    query = VectorStoreQuery([1.0, 2.0], mode=VectorStoreQueryMode.MMR)
    for threshold in (1.5, -0.1):
        with pytest.raises(SettingsError, match=r"`mmr_threshold` must be between 0 and 1, got .*; 0.5 is usual"):
            store.query(query, mmr_threshold=threshold)
    for name in ("mmr_prefetch_k", "mmr_prefetch_factor"):
        for value in (-1, "many"):
            with pytest.raises(SettingsError, match=f"`{name}` must be a .*number of at least 1, got"):
                store.query(query, **{name: value})
    with pytest.raises(
        SettingsError, match=r"`mmr_prefetch_k` and `mmr_prefetch_factor` set the same number, got 3 and 2"
    ):
        store.query(query, mmr_prefetch_k=3, mmr_prefetch_factor=2)
    with pytest.raises(SettingsError, match=r"`query` takes mmr_prefetch_factor, mmr_prefetch_k, .*, got 'threshold'"):
        store.query(query, threshold=1)
    with pytest.raises(SettingsError, match=r"`add` takes none besides its own arguments, got 'upsert'; leave it out"):
        store.add([good()], upsert=True)
    with pytest.raises(SettingsError, match="`delete` takes none besides its own arguments, got 'x'"):
        store.delete("doc", x=1)
    with pytest.raises(SettingsError, match="`delete_nodes` takes none besides its own arguments, got 'x'"):
        store.delete_nodes(["good"], x=1)
    with pytest.raises(
        SettingsError, match=r"`ref_doc_id` must be a string, got \['doc'\]; pass lists to delete_nodes"
    ):
        store.delete(["doc"])
    for ids in ("good", ["good", 1]):
        with pytest.raises(ValueError, match=r"`node_ids` must be a list of strings, got .*; write node_ids=\[...\]"):
            store.get_nodes(ids)
    for filters in (None, MetadataFilters(filters=[])):
        with pytest.raises(SettingsError, match=r"needs `node_ids` or `filters`, got neither; clear\(\) deletes all"):
            store.delete_nodes(filters=filters)
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        MemograftVectorStore(dimension=3)
    assert len(store.get_nodes()) == 1


def test_bad_folders(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    store = MemograftVectorStore(tmp_path / "file")
    with pytest.raises(StoreCorruptError, match=r"a store is a folder, and .* is a file; choose another path"):
        store.add([good()])
    with pytest.raises(StoreError, match="holds no store to read"):
        MemograftVectorStore(tmp_path / "nowhere", read_only=True)
    with pytest.raises(SettingsError, match="a store in memory has nothing to read"):
        MemograftVectorStore(read_only=True)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "passages.sqlite3").write_bytes(b"not a database, but long enough" * 100)
    with pytest.raises(StoreCorruptError, match="damaged or not a store"):
        MemograftVectorStore(tmp_path / "bad")


def test_what_a_folder_refuses(tmp_path) -> None:
    with MemograftVectorStore(tmp_path / "s") as store:
        store.add([good()])
        with pytest.raises(StoreLockedError, match="one writer at a time"):
            MemograftVectorStore(tmp_path / "s")
        with MemograftVectorStore(tmp_path / "s", read_only=True) as reader:
            for write in (reader.clear, lambda: reader.add([good()]), lambda: reader.delete("doc")):
                with pytest.raises(StoreReadOnlyError, match="open with read_only=True"):
                    write()
    with pytest.raises(StoreError, match="is closed; open it again"):
        store.get_nodes()
    with pytest.raises(
        EmbedderMismatchError, match=r"was built with the embedder 'given-2' \(D=2\), got 'lexical-1-64'"
    ):
        MemograftVectorStore(tmp_path / "s", embedder=LexicalEmbedder(64))


def test_it_cannot_be_pickled_into_an_empty_store() -> None:
    store = MemograftVectorStore()
    store.add([good()])
    with pytest.raises(
        TypeError, match=r"a MemograftVectorStore cannot be pickled, got the one in memory; open its path"
    ):
        pickle.dumps(store)
    with pytest.raises(TypeError):
        copy.deepcopy(store)


def test_persisting_needs_the_local_file_system(tmp_path) -> None:
    import fsspec

    store = MemograftVectorStore()
    store.add([good(text=Document(text="x").text)])
    memory = fsspec.filesystem("memory")
    for use in (store.persist, MemograftVectorStore.from_persist_path):
        with pytest.raises(
            SettingsError, match=r"a store is a folder of the local file system, got fs=.*; copy the folder"
        ):
            use(str(tmp_path / "x"), fs=memory)
    with pytest.raises(StoreError, match="does not exist; call `persist` with this path first, or check the path"):
        MemograftVectorStore.from_persist_path(str(tmp_path / "nowhere"))
