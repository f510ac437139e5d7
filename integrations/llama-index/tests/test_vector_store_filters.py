"""Metadata filters compared with llama-index-core's own, and with plain Python where it has none."""

from __future__ import annotations

import random

import pytest
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.llms.memograft._filters import to_group
from llama_index.llms.memograft.vector_store import MemograftVectorStore
from memograft.errors import FilterError
from memograft.passages.comparisons import matches, split

VALUES = [0, 1, -3, 2.5, 1e300, "", "1", "a", "b", "Zoë", "zoË", "ab", "q\"u\\o'te", "nul\0", "İx"]
KEYS = ["a", "b", 'odd "key"', "x.y", "$price", "doc_id"]
LISTS = (FilterOperator.IN, FilterOperator.NIN, FilterOperator.ANY, FilterOperator.ALL)
TEXTS = (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE)


def same_kind(rng: random.Random) -> list:
    strings = rng.random() < 0.5
    return [v for v in rng.sample(VALUES, rng.randrange(4)) if isinstance(v, str) == strings]


def random_metadata(rng: random.Random) -> dict:
    def value():
        if rng.random() < 0.25:
            return same_kind(rng) + ([True] if rng.random() < 0.1 else [])
        return rng.choice([*VALUES, True, False, None])

    return {key: value() for key in KEYS[:5] if rng.random() < 0.6}


def random_leaf(rng: random.Random) -> MetadataFilter:
    operator = rng.choice(list(FilterOperator))
    if operator in LISTS or (operator in (FilterOperator.EQ, FilterOperator.NE) and rng.random() < 0.1):
        value = same_kind(rng)
    elif operator in TEXTS:
        value = rng.choice([v for v in VALUES if isinstance(v, str)])
    else:
        value = None if operator is FilterOperator.IS_EMPTY else rng.choice(VALUES)
    return MetadataFilter(key=rng.choice(KEYS), value=value, operator=operator)


def random_group(rng: random.Random, depth: int) -> MetadataFilters:
    parts = [
        random_group(rng, depth - 1) if depth and rng.random() < 0.4 else random_leaf(rng)
        for _ in range(rng.randrange(1, 4))
    ]
    return MetadataFilters(filters=parts, condition=rng.choice([None, *FilterCondition]))


def nodes_and_store(count: int = 120) -> tuple[list[TextNode], MemograftVectorStore]:
    rng = random.Random(3)
    nodes = [
        TextNode(
            text=f"text {i}",
            id_=str(i),
            embedding=[1.0, i],
            metadata=random_metadata(rng),
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=rng.choice(["a", "b"]))},
        )
        for i in range(count)
    ]
    store = MemograftVectorStore()
    store.add(nodes)
    return nodes, store


def seen(node: TextNode) -> dict:
    """The metadata of a node for filters."""
    return {"doc_id": node.ref_doc_id, **node.metadata}


def found(store, filters: MetadataFilters) -> set[str]:
    query = VectorStoreQuery(query_embedding=[1.0, 2.0], similarity_top_k=10_000, filters=filters)
    return set(store.query(query).ids)


def test_flat_filters_mean_what_llama_index_means() -> None:
    """Where LlamaIndex raises an error, for types that cannot be compared, the passage does not match."""
    rng = random.Random(5)
    nodes, store = nodes_and_store()
    oracles = []
    for node in nodes:  # one store a node: an error tells which node it is about
        oracles.append(SimpleVectorStore())
        oracles[-1].add([node])
    partly = 0
    for _ in range(200):
        leaf = random_leaf(rng)
        filters = MetadataFilters(filters=[leaf])
        wanted = set()
        for node, oracle in zip(nodes, oracles, strict=True):
            try:
                wanted |= found(oracle, filters)
            except TypeError:
                assert not matches(to_group(filters), seen(node)), (leaf, node.metadata)
        assert found(store, filters) == wanted, leaf
        partly += 0 < len(wanted) < len(nodes)
    assert partly > 70, "the random filters hardly tell nodes apart"


@pytest.mark.parametrize("condition", list(FilterCondition))
def test_conditions_mean_what_llama_index_means(condition: FilterCondition) -> None:
    nodes, store = nodes_and_store()
    oracle = SimpleVectorStore()
    oracle.add(nodes)
    for leaves in (
        [MetadataFilter(key="a", value="a"), MetadataFilter(key="b", operator=FilterOperator.IS_EMPTY, value=None)],
        [MetadataFilter(key="a", value=1), MetadataFilter(key="b", value=["a", "1"], operator=FilterOperator.NIN)],
        [],
    ):
        filters = MetadataFilters(filters=leaves, condition=condition)
        assert found(store, filters) == found(oracle, filters)


def test_nested_filters_mean_what_python_means() -> None:
    rng = random.Random(7)
    nodes, store = nodes_and_store()
    partly = translated = 0
    for _ in range(150):
        filters = random_group(rng, 3)
        wanted = {node.node_id for node in nodes if matches(to_group(filters), seen(node))}
        assert found(store, filters) == wanted, filters
        assert {node.node_id for node in store.get_nodes(filters=filters)} == wanted
        partly += 0 < len(wanted) < len(nodes)
        translated += not split(to_group(filters))[1]
    assert partly > 75
    assert 15 < translated < 135, "both ways have to be tried"


def test_nothing_is_lost_behind_better_matches_that_do_not_fit() -> None:
    """The matching nodes are the least similar of 2,000; a store that filtered its results would find none."""
    store = MemograftVectorStore()
    store.add(
        [
            TextNode(id_=str(i), text="x", embedding=[1.0, i / 100], metadata={"n": i, "t": f"Page {i}"})
            for i in range(2000)
        ]
    )
    last = [MetadataFilter(key="n", value=1997, operator=FilterOperator.GTE)]
    words = [
        MetadataFilter(key="t", value=f"PAGE 199{n}", operator=FilterOperator.TEXT_MATCH_INSENSITIVE) for n in (7, 8, 9)
    ]
    for filters in (MetadataFilters(filters=last), MetadataFilters(filters=words, condition=FilterCondition.OR)):
        query = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=3, filters=filters)
        assert store.query(query).ids == ["1997", "1998", "1999"]


def test_filters_too_large_or_deep_for_sqlite_still_work() -> None:
    nodes, store = nodes_and_store()
    many = MetadataFilters(
        filters=[MetadataFilter(key="a", value=f"v{i}") for i in range(1000)] + [MetadataFilter(key="a", value="a")],
        condition=FilterCondition.OR,
    )
    wanted = {node.node_id for node in nodes if node.metadata.get("a") == "a"}
    assert found(store, many) == wanted
    deep = MetadataFilters(filters=[MetadataFilter(key="a", value="a")])
    for depth in range(1, 40):
        deep = MetadataFilters(filters=[deep], condition=FilterCondition.NOT if depth % 2 else FilterCondition.OR)
        expected = {n.node_id for n in nodes if matches(to_group(deep), n.metadata)}
        assert found(store, deep) == expected
        query = VectorStoreQuery([1.0, 2.0], 1000, node_ids=["1", "2"], doc_ids=["d"], filters=deep)
        assert store.query(query).ids == []


@pytest.mark.parametrize(
    ("operator", "value", "text"),
    [
        (
            FilterOperator.EQ,
            None,
            r"the operator '==' on `k` takes a value, got None; ask for .* the operator 'is_empty'",
        ),
        (FilterOperator.IN, "abc", r"the operator 'in' on `k` takes a list, got 'abc'; write value=\[...\]"),
        (FilterOperator.ANY, 3, r"the operator 'any' on `k` takes a list, got 3"),
        (FilterOperator.GT, [1, 2], r"the operator '>' on `k` takes one value, got \[1, 2\]; use in, any or all"),
        (FilterOperator.TEXT_MATCH, 7, r"the operator 'text_match' on `k` takes a string, got 7; use == for numbers"),
    ],
)
def test_filters_that_cannot_be_meant(operator, value, text) -> None:
    _, store = nodes_and_store(3)
    inner = MetadataFilters(filters=[MetadataFilter(key="k", value=value, operator=operator)])
    filters = MetadataFilters(filters=[inner], condition=FilterCondition.NOT)
    for use in (lambda: found(store, filters), lambda: store.get_nodes(filters=filters)):
        with pytest.raises(FilterError, match=text):
            use()
    with pytest.raises(FilterError, match=text):
        store.delete_nodes(filters=filters)
    assert len(store.get_nodes()) == 3
