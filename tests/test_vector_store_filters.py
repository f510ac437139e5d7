"""Metadata filters against an implementation in Python, with random metadata and random filters."""

from __future__ import annotations

import math
import random

import pytest

from memograft.documents import Document
from memograft.errors import (
    FilterError,
)
from memograft.passages.embedders import LexicalEmbedder
from memograft.passages.vector_store import VectorStore
from store_doubles import NumberEmbedder, brute_force, found, numbered

VALUES = [
    0,
    -0.0,
    1,
    1.0,
    -3,
    -3.0,
    17,
    2.5,
    0.1,
    1e-7,
    1e15,
    10**15,
    1e16,
    10**16,
    999999999999999.0,
    1e300,
    12345678901234567890,
    "",
    "1",
    "a",
    "Zoë",
    "q\"u\\o'te",
    True,
    False,
    None,
]
KEYS = ["a", "b", 'odd "key"', "x.y", "$ish'; DROP TABLE passages; --"]

TYPES = {"string": str, "number": (int, float), "bool": bool, "null": type(None), "array": list, "object": dict}


def random_metadata(rng: random.Random) -> dict:
    def value():
        return [rng.choice(VALUES) for _ in range(rng.randrange(3))] if rng.random() < 0.2 else rng.choice(VALUES)

    metadata = {key: value() for key in KEYS if rng.random() < 0.6}
    return {**metadata, "nested": {"a": 1}, **({"b": {}} if rng.random() < 0.1 else {})}


def random_filter(rng: random.Random, depth: int = 0) -> dict:
    if depth < 3 and rng.random() < 0.4:
        word = rng.choice(["$and", "$or", "$not"])
        parts = [random_filter(rng, depth + 1) for _ in range(rng.randrange(1, 4))]
        return {word: parts[0] if word == "$not" else parts}
    return {rng.choice(KEYS[:4]): random_condition(rng) for _ in range(rng.randrange(1, 3))}


def random_condition(rng: random.Random):
    names = ["", "$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$not"]
    name = rng.choice([*names, "$contains", "$empty", "$type"])
    match name:
        case "$type":
            return {name: rng.choice(list(TYPES))}
        case "":
            return rng.choice(VALUES)
        case "$in" | "$nin":
            return {name: [rng.choice(VALUES) for _ in range(rng.randrange(4))]}
        case "$exists" | "$empty":
            return {name: rng.random() < 0.5}
        case "$not":
            return {name: {"$gt": rng.choice([0, "a"])}}
        case "$gt" | "$gte" | "$lt" | "$lte":
            return {name: rng.choice([v for v in VALUES if v is not None and not isinstance(v, bool)])}
    return {name: rng.choice(VALUES)}


def kind_fits(value, name: str) -> bool:
    return isinstance(value, bool) == (name == "bool")


def kind_of(value) -> str:
    return "bool" if isinstance(value, bool) else "number" if isinstance(value, int | float) else type(value).__name__


def naive_match(metadata: dict, where: dict) -> bool:
    """The meaning of a filter, in Python."""
    return all(naive_clause(metadata, key, value) for key, value in where.items())


def naive_clause(metadata, key, value) -> bool:
    if key == "$and":
        return all(naive_match(metadata, part) for part in value)
    if key == "$or":
        return any(naive_match(metadata, part) for part in value)
    if key == "$not":
        return not naive_match(metadata, value)
    operators = value if isinstance(value, dict) else {"$eq": value}
    return all(naive_operator(metadata, key, name, operand) for name, operand in operators.items())


def naive_operator(metadata, key, name, operand) -> bool:
    here = [metadata[key], *(metadata[key] if isinstance(metadata[key], list) else [])] if key in metadata else []

    def equals(operand):
        return (operand is None and not here) or any(
            kind_of(value) == kind_of(operand) and value == operand for value in here if not isinstance(value, list)
        )

    order = {"$gt": lambda a, b: a > b, "$gte": lambda a, b: a >= b, "$lt": lambda a, b: a < b}
    order["$lte"] = lambda a, b: a <= b
    match name:
        case "$eq":
            return equals(operand)
        case "$ne":
            return not equals(operand)
        case "$in":
            return any(equals(value) for value in operand)
        case "$nin":
            return not any(equals(value) for value in operand)
        case "$exists":
            return (key in metadata) == operand
        case "$empty":
            return (metadata.get(key) in (None, "", [])) == operand
        case "$type":
            return key in metadata and isinstance(metadata[key], TYPES[operand]) and kind_fits(metadata[key], operand)
        case "$contains":
            value = metadata.get(key)
            if isinstance(value, str):
                return isinstance(operand, str) and operand in value
            return isinstance(value, list) and any(kind_of(v) == kind_of(operand) and v == operand for v in value)
        case "$not":
            return not all(naive_operator(metadata, key, *item) for item in operand.items())
    return any(kind_of(value) == kind_of(operand) and order[name](value, operand) for value in here)


def test_filters_mean_what_python_means() -> None:
    rng = random.Random(5)
    store = VectorStore(LexicalEmbedder(64))
    documents = [Document(f"text {i}", str(i), random_metadata(rng)) for i in range(150)]
    store.add(documents)
    matched = 0
    for _ in range(400):
        where = random_filter(rng)
        wanted = {document.id for document in documents if naive_match(document.metadata, where)}
        hits = store.search("text", k=1000, where=where)
        assert {hit.document.id for hit in hits} == wanted, where
        assert store.count(where) == len(wanted)
        matched += 0 < len(wanted) < 150
    assert matched > 200, "the random filters hardly tell documents apart"
    assert len(store) == 150, "a key changed the database"


def test_ids_are_a_filter_too() -> None:
    store = VectorStore(NumberEmbedder())
    store.add(numbered(range(100)))
    many = [f"id{n}" for n in range(90, 50_000)]
    assert store.count({"$id": many}) == 10
    assert store.count({"$id": "id7"}) == store.count({"$id": ["id7", "nobody", "\ud800"]}) == 1
    assert store.count({"$id": []}) == 0
    assert store.count({"$not": {"$id": many}, "n": {"$gte": 80}}) == 10
    assert store.search("93 text", where={"$id": ["id1", "id93"]})[0].document.id == "id93"
    assert store.delete(where={"$or": [{"$id": ["id1"]}, {"n": 2}]}) == 2
    assert len(store.get(["id1", "id2", "id3"])) == 1


def test_a_list_of_many_values_is_one_parameter() -> None:
    store = VectorStore(NumberEmbedder())
    store.add(numbered(range(100)))
    assert store.count({"n": {"$in": list(range(50, 100_000))}}) == 50
    assert store.count({"$or": [{"n": n} for n in range(200)]}) == 100


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ([], r"a filter must be a mapping of keys to conditions, got \[\]; write it as"),
        ({"a": {"$near": 1}}, r"the condition on `a` has an unknown operator, got '\$near'; use one of \$eq"),
        ({"a": {"b": 1}}, "unknown operator, got 'b'"),
        ({"a": {}}, r"the condition on `a` names no operator, got \{\}"),
        ({"a": [1, 2]}, r"`\$eq` on `a` compares with a string, number, bool or None, got \[1, 2\]; use \$in"),
        ({"a": {"$in": "abc"}}, r"`\$in` on `a` takes a list of values, got 'abc'"),
        ({"a": {"$gt": True}}, r"`\$gt` on `a` compares with a number or a string, got True; use \$eq"),
        ({"a": {"$lt": math.nan}}, "finite numbers, got nan; JSON has no NaN"),
        ({"a": {"$exists": 1}}, r"`\$exists` on `a` takes a bool, got 1; write True or False"),
        ({"a": {"$not": 3}}, r"`\$not` on `a` takes operators, got 3"),
        ({"$or": []}, r"`\$or` takes a list of at least one filter, got \[\]"),
        ({"$nor": [{"a": 1}]}, r"the operators outside a key are \$and, \$or, \$not and \$id, got '\$nor'"),
        ({"$id": 7}, r"`\$id` takes an id or a list of ids, got 7; write"),
        ({"$id": ["a", 7]}, r"`\$id` takes an id or a list of ids, got \['a', 7\]"),
        ({"a": {"$type": "list"}}, r"`\$type` on `a` takes the name of a JSON type, got 'list'; use one of string"),
        ({"a": {"$type": ["null"]}}, r"`\$type` on `a` takes the name of a JSON type, got \['null'\]"),
        ({"a": {"$empty": None}}, r"`\$empty` on `a` takes a bool, got None; write True or False"),
        ({"a": {"$contains": ["x"]}}, r"`\$contains` on `a` compares with a string, number, bool or None, got \['x'\]"),
        ({1: 2}, "the keys of a filter must be strings, got 1"),
        ({"a": "nul\0"}, "without NUL and lone surrogates"),
        ({"\ud800": 1}, "without NUL and lone surrogates"),
        ({"$or": [{"a": n} for n in range(2000)]}, r"a filter has at most 500 conditions, got more; put the values in"),
    ],
)
def test_malformed_filters(where, text) -> None:
    for use in (VectorStore().count, lambda where: VectorStore().search("x", where=where)):
        with pytest.raises(FilterError, match=text):
            use(where)


@pytest.mark.parametrize("wrap", [lambda f: {"$not": f}, lambda f: {"$or": [f, {"a": {"$not": {"$gt": 0}}}]}])
def test_filters_nest_until_they_are_refused(wrap) -> None:
    """SQLite's parser has a small stack; it must be able to parse every accepted filter."""
    store = VectorStore(LexicalEmbedder(64))
    store.add([Document("text", metadata={"a": 1})])
    where: dict = {"a": {"$in": [1, "x", None, True], "$contains": "x", "$empty": False}}
    with pytest.raises(FilterError, match="at most 20 levels deep, got more; flatten it"):  # noqa: PT012
        for _depth in range(5000):
            store.count(where)
            where = wrap(where)
    assert _depth >= 8


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_a_filter_that_comes_again_sees_every_write(tmp_path, kind) -> None:
    """Additions, replacements, deletions and compaction between searches with the same filters, against a dict."""
    rng = random.Random(0)
    embedder = NumberEmbedder()
    contents: dict[str, int] = {}
    filters = [
        ({"odd": True}, lambda n: n % 2 == 1),
        ({"odd": {"$ne": True}}, lambda n: n % 2 == 0),
        ({"n": {"$gte": 100}}, lambda n: n >= 100),
        ({"odd": 1}, lambda n: False),
    ]
    with (
        VectorStore(embedder, tmp_path, index=kind) as store,
        VectorStore(embedder, tmp_path, read_only=True) as reader,
    ):
        for step in range(60):
            match rng.choice(["add", "add", "replace", "delete", "compact"]):
                case "add":
                    names = {f"id{rng.randrange(200)}": rng.randrange(200) for _ in range(9)}
                case "replace" if contents:
                    names = {rng.choice(list(contents)): rng.randrange(200)}
                case "delete" if contents:
                    names = {}
                    gone = rng.sample(list(contents), min(5, len(contents)))
                    store.delete(gone)
                    contents = {name: n for name, n in contents.items() if name not in gone}
                case _:
                    names = {}
                    store.compact()
            store.add([Document(f"{n} text", name, {"n": n, "odd": n % 2 == 1}) for name, n in names.items()])
            contents |= names
            where, meets = filters[step % len(filters)]
            wanted = brute_force(embedder, [n for n in contents.values() if meets(n)], embedder.table[7], 5)
            for opened in (store, reader):
                assert found(opened.search("7", k=5, where=where)) == wanted


def test_filters_that_were_not_used_lately_are_forgotten(monkeypatch) -> None:
    monkeypatch.setattr("memograft.passages.filtered._MOST", 30)
    store = VectorStore(NumberEmbedder())
    store.add(numbered(range(20)))
    for start in [*range(10), 0]:
        assert len(store.search("7", k=50, where={"n": {"$gte": start}})) == 20 - start
    assert len(store._search._filtered._known) == 1
