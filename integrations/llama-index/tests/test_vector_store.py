"""The vector store against LlamaIndex's SimpleVectorStore, a dict of nodes, and NumPy."""

from __future__ import annotations

import random

import numpy as np
import pytest
from llama_index.core.schema import (
    Document,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.llms.memograft.vector_store import MemograftVectorStore
from memograft.passages.search import mmr_order

D = 8
TABLE = np.random.default_rng(0).normal(size=(400, D))


def node(n: int, doc: str | None = None, **metadata) -> TextNode:
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=doc)} if doc else {}
    return TextNode(
        id_=f"n{n}",
        text=f"text {n}",
        embedding=TABLE[n].tolist(),
        metadata={"n": n, **metadata},
        relationships=source,
    )


def ask(n: int, k: int = 3, **more) -> VectorStoreQuery:
    return VectorStoreQuery(query_embedding=TABLE[n].tolist(), similarity_top_k=k, **more)


def at_least(n: int) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key="n", value=n, operator=FilterOperator.GTE)])


# nodes --------------------------------------------------------------------------------------------------------------


def rich_nodes() -> list:
    metadata = {"file": "a.txt", "page": 3, "tags": ["x", "y"], "nested": {"a": [1, None]}, "ratio": 0.1, "none": None}
    related = {
        NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc", hash="h", metadata={"file": "a.txt"}),
        NodeRelationship.PREVIOUS: RelatedNodeInfo(node_id="before"),
        NodeRelationship.CHILD: [RelatedNodeInfo(node_id="c1"), RelatedNodeInfo(node_id="c2")],
    }
    more = {"metadata": metadata, "relationships": related, "embedding": [1.0, 0.0], "metadata_separator": " | "}
    return [
        TextNode(
            text="Zoë says hi.\n",
            start_char_idx=4,
            end_char_idx=17,
            excluded_llm_metadata_keys=["page"],
            excluded_embed_metadata_keys=["file"],
            text_template="<{metadata_str}> {content}",
            metadata_template="{key}={value}",
            **more,
        ),
        TextNode(text="", **more),  # a blank page, which has metadata
        IndexNode(text="see there", index_id="elsewhere", obj=TextNode(text="inner", id_="inner"), **more),
        Node(text_resource=MediaResource(text="a node", mimetype="text/markdown"), **more),
        Document(text="a whole document", **more),
        TextNode(text="own names", embedding=[0, 1], metadata={"doc_id": "mine", "_node": 3, "_ref_doc_id": "z"}),
    ]


def test_nodes_come_back_as_they_were() -> None:
    nodes = rich_nodes()
    store = MemograftVectorStore()
    assert store.add(nodes) == [n.node_id for n in nodes]
    for back in (store.get_nodes(), store.query(VectorStoreQuery([1.0, 0.0], 10)).nodes):
        by_id = {n.node_id: n for n in back}
        assert len(by_id) == len(nodes)
        for old in nodes:
            new = by_id[old.node_id]
            assert type(new) is type(old)
            assert new.hash == old.hash
            assert new.ref_doc_id == old.ref_doc_id
            assert new.embedding is None
            assert new.model_dump(exclude={"embedding"}) == old.model_dump(exclude={"embedding"})
            assert list(new.metadata) == list(old.metadata)


def test_the_users_own_names_win_in_filters_and_never_in_deletes() -> None:
    store = MemograftVectorStore()
    store.add([node(1, "doc", doc_id="mine", _ref_doc_id="trap"), node(2, "other")])
    mine, other = ([MetadataFilter(key="doc_id", value=value)] for value in ("mine", "other"))
    assert [n.node_id for n in store.get_nodes(filters=MetadataFilters(filters=mine))] == ["n1"]
    assert [n.node_id for n in store.get_nodes(filters=MetadataFilters(filters=other))] == ["n2"]
    store.delete("trap")
    store.delete("mine")
    assert len(store.get_nodes()) == 2
    store.delete("doc")
    assert [n.node_id for n in store.get_nodes()] == ["n2"]


def test_a_passage_of_another_program_is_a_text_node() -> None:
    store = MemograftVectorStore()
    store.add([node(1)])
    assert store.client is not None
    store.client.add([{"text": "by hand", "id": "core", "metadata": {"n": 7}}], vectors=[TABLE[7]])
    for odd in ("[]", "no json", 3, {"class_name": "TextNode"}):
        store.client.add([{"text": "odd", "id": "odd", "metadata": {"_node": odd}}], vectors=[TABLE[8]])
        assert store.get_nodes(["odd"])[0].metadata == {"_node": odd}
    (best,) = store.query(ask(7, k=1)).nodes
    assert (type(best), best.text, best.node_id, best.metadata) == (TextNode, "by hand", "core", {"n": 7})


# contents -----------------------------------------------------------------------------------------------------------


def test_adding_after_deleting_finds_the_right_node() -> None:
    """LlamaIndex's FaissMapVectorStore takes the number of vectors as the next id, and answers n3 for n2 here."""
    store = MemograftVectorStore()
    store.add([node(0), node(1), node(2)])
    store.delete_nodes(["n0"])
    store.add([node(3)])
    for n in (1, 2, 3):
        assert store.query(ask(n, k=1)).ids == [f"n{n}"]
        assert store.query(ask(n, k=1)).nodes[0].text == f"text {n}"
    assert set(store.query(ask(0, k=10)).ids) == {"n1", "n2", "n3"}


def test_adding_again_replaces() -> None:
    store = MemograftVectorStore()
    store.add([node(1, "doc")])
    changed = node(1, "new")
    changed.text, changed.embedding = "changed", TABLE[5].tolist()
    assert store.add([changed, node(2), changed]) == ["n1", "n2", "n1"]
    assert [n.text for n in store.get_nodes(["n1"])] == ["changed"]
    assert store.query(ask(5, k=5)).ids == ["n1", "n2"]
    store.delete("doc")
    assert len(store.get_nodes()) == 2
    store.delete("new")
    assert [n.node_id for n in store.get_nodes()] == ["n2"]


@pytest.mark.parametrize("index", ["flat", "hnsw"])
def test_random_changes_against_the_simple_store(index: str) -> None:
    rng = random.Random(11)
    ours, theirs = MemograftVectorStore(index=index), SimpleVectorStore()
    texts: dict[str, str] = {}
    for step in range(120):
        some = [f"n{rng.randrange(200)}" for _ in range(rng.randrange(1, 12))]
        match rng.choice(["add", "add", "delete", "nodes", "filters", "both", "clear" if step % 40 == 39 else "add"]):
            case "add":
                nodes = [node(int(id[1:]), rng.choice(["a", "b", "c", None]), step=step) for id in some]
                assert ours.add(nodes) == theirs.add(nodes)
            case "delete":
                doc = rng.choice(["a", "b", "nobody"])
                ours.delete(doc)
                theirs.delete(doc)
            case "nodes":
                ours.delete_nodes(some)
                theirs.delete_nodes(some)
            case "filters":
                ours.delete_nodes(filters=at_least(170))
                theirs.delete_nodes(filters=at_least(170))
            case "both":
                ours.delete_nodes(some, at_least(50))
                theirs.delete_nodes(some, at_least(50))
            case "clear":
                ours.clear()
                theirs.clear()
        texts = {id: f"text {id[1:]}" for id in theirs.data.embedding_dict}
        assert {n.node_id: n.text for n in ours.get_nodes()} == texts
        filters = rng.choice([None, at_least(rng.randrange(200))])
        query = ask(rng.randrange(400), k=rng.choice([1, 5, 300]), filters=filters)
        got, wanted = ours.query(query), theirs.query(query)
        assert got.ids == wanted.ids
        np.testing.assert_allclose(got.similarities, wanted.similarities, atol=1e-5)
        assert [n.text for n in got.nodes] == [texts[id] for id in got.ids]
    assert len(texts) > 5


def test_get_nodes() -> None:
    store = MemograftVectorStore()
    assert store.get_nodes() == store.get_nodes(["n1"]) == store.get_nodes(filters=at_least(3)) == []
    store.add([node(n) for n in (4, 2, 9, 6)])
    assert [n.node_id for n in store.get_nodes()] == ["n4", "n2", "n9", "n6"]
    assert [n.node_id for n in store.get_nodes(["n6", "nobody", "n4", "n6"])] == ["n6", "n4"]
    assert store.get_nodes([]) == []
    assert [n.node_id for n in store.get_nodes(filters=at_least(5))] == ["n9", "n6"]
    assert [n.node_id for n in store.get_nodes(["n6", "n2", "n9"], at_least(5))] == ["n6", "n9"]
    text = MetadataFilters(filters=[MetadataFilter(key="n", value="X", operator=FilterOperator.TEXT_MATCH_INSENSITIVE)])
    assert store.get_nodes(["n6"], text) == []


def test_an_empty_store() -> None:
    store = MemograftVectorStore()
    assert store.client is None
    for _ in range(2):
        result = store.query(ask(1))
        assert (result.nodes, result.similarities, result.ids) == ([], [], [])
        store.delete("doc")
        store.delete_nodes(["n1"])
        store.delete_nodes(filters=at_least(3))
        store.clear()
        assert store.add([]) == []
        store.add([node(1)])
        store.clear()


# queries ------------------------------------------------------------------------------------------------------------


def test_ids_documents_and_filters_restrict_together() -> None:
    store = MemograftVectorStore()
    store.add([node(n, doc="even" if n % 2 == 0 else "odd") for n in range(100)])
    assert set(store.query(ask(1, k=100, node_ids=["n1", "n2", "nobody"])).ids) == {"n1", "n2"}
    assert set(store.query(ask(1, k=100, doc_ids=["odd"])).ids) == {f"n{n}" for n in range(1, 100, 2)}
    every = ask(1, k=100, doc_ids=["odd", "x"], node_ids=[f"n{n}" for n in range(95)], filters=at_least(90))
    assert set(store.query(every).ids) == {"n91", "n93"}
    assert len(store.query(ask(1, k=200, doc_ids=[], node_ids=[])).ids) == 100, "retrievers pass [] for no restriction"
    nothing = MetadataFilters(filters=[MetadataFilter(key="n", value=-1)])
    assert store.query(ask(1, filters=nothing)).ids == []


@pytest.mark.parametrize("how", [{}, {"mmr_threshold": 0.2}, {"mmr_threshold": 0.0}, {"mmr_threshold": 1.0}])
def test_mmr(how: dict) -> None:
    store = MemograftVectorStore()
    store.add([node(n) for n in range(60)])
    unit = TABLE / np.linalg.norm(TABLE, axis=1, keepdims=True)
    relevance = unit[:60] @ unit[99]
    closest = np.sort(np.argsort(-relevance)[:20])
    for prefetch, among in (
        ({}, closest),
        ({"mmr_prefetch_k": 60}, np.arange(60)),
        ({"mmr_prefetch_factor": 12}, np.arange(60)),
    ):
        weight = how.get("mmr_threshold", 0.5)
        order = mmr_order(relevance[among], unit[among].astype(np.float32), 5, weight)
        wanted = [f"n{among[i]}" for i in order]
        mode = VectorStoreQueryMode.MMR
        got = store.query(ask(99, k=5, mode=mode), **how, **prefetch)
        assert got.ids == wanted
        assert store.query(ask(99, k=5, mode=mode, **how), **prefetch).ids == wanted
        np.testing.assert_allclose(got.similarities, [relevance[among[i]] for i in order], atol=1e-5)
    few = store.query(ask(99, k=50, mode=VectorStoreQueryMode.MMR, filters=at_least(55)), **how)
    assert sorted(few.ids) == [f"n{n}" for n in range(55, 60)]


def test_ten_thousand_nodes() -> None:
    rng = np.random.default_rng(4)
    table = rng.normal(size=(10_000, 64)).astype(np.float32)
    store = MemograftVectorStore()
    nodes = [
        TextNode(id_=f"n{n}", text=f"text {n}", embedding=table[n].tolist(), metadata={"n": n}) for n in range(10_000)
    ]
    assert len(store.add(nodes)) == 10_000
    one_percent = MetadataFilters(filters=at_least(9_900).filters, condition=FilterCondition.AND)
    scores = table[9_900:] @ table[3] / np.linalg.norm(table[9_900:], axis=1)
    query = VectorStoreQuery(table[3].tolist(), 10, filters=one_percent)
    assert store.query(query).ids == [f"n{9_900 + i}" for i in np.argsort(-scores)[:10]]
    assert store.query(VectorStoreQuery(table[77].tolist(), 1)).ids == ["n77"]
    assert len(store.get_nodes()) == 10_000
    store.delete_nodes(filters=at_least(1_000))
    assert len(store.get_nodes()) == 1_000
