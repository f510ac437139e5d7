"""Metadata filters: compile a Mongo-style mapping to an SQL condition over the JSON of a passage's metadata.

`compile_filter(where)` returns the condition and its parameters. Keys and values are always parameters, never part of
the SQL text. Only the columns `id` and `metadata` are used.

Comparisons are typed: a number never equals a string or a bool, and strings compare by code point. A list in the
metadata matches if any of its elements does. `$ne`, `$nin` and `$not` are the exact negations of `$eq`, `$in` and
their operand, so, as in MongoDB, they also match passages without the key; `{"key": None}` matches null or no value.
`$contains` tests for a substring or a list element. `$type` and `$empty` test the value itself, not the elements of a
list. `{"$id": [...]}`, at the top level, matches passages by id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from memograft.errors import FilterError

__all__ = ["Condition", "compile_filter"]

# Below the limits of SQLite (32,766 parameters, and a parser stack of 100, which 26 nested $not fill), so that too
# large filters fail with a clear error.
_MAX_CONDITIONS = 500
_MAX_DEPTH = 20

_MOST_GLANCES = 8

_ORDERINGS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_OPERATORS = ("$eq", "$ne", *_ORDERINGS, "$in", "$nin", "$contains", "$exists", "$empty", "$type", "$not")
_TYPES = {  # names of JSON's types to SQLite's
    "string": "('text')",
    "number": "('integer', 'real')",
    "bool": "('true', 'false')",
    "null": "('null')",
    "array": "('array')",
    "object": "('object')",
}

Condition = tuple[str, list[Any]]


def compile_filter(where: Mapping[str, Any] | None) -> Condition:
    """Return (SQL condition, parameters) for a filter; None and {} match every passage.

    Raises:
        FilterError: the filter is malformed; the message states the rule, the value and the remedy.
    """
    if where is None:
        return "1", []
    if sum(1 for _ in _walk(where, 0)) > _MAX_CONDITIONS:
        _refuse(f"a filter has at most {_MAX_CONDITIONS} conditions", "more", "put the values in one $in")
    return _filter(where)


def _refuse(rule: str, value: object, remedy: str) -> NoReturn:
    shown = value if isinstance(value, str) and value == "more" else repr(value)
    raise FilterError(f"{rule}, got {str(shown)[:200]}; {remedy}")


def _walk(part: object, depth: int) -> Iterator[object]:
    """Yield every operator and key. The values of $in count as one condition, because they become one parameter."""
    if depth > _MAX_DEPTH:
        _refuse(f"a filter is at most {_MAX_DEPTH} levels deep", "more", "flatten it")
    if isinstance(part, Mapping):
        for key, value in part.items():
            yield key
            yield from _walk(value, depth + 1)
    elif isinstance(part, list | tuple) and any(isinstance(item, Mapping) for item in part):
        for item in part:
            yield from _walk(item, depth + 1)


def _filter(where: object) -> Condition:
    if not isinstance(where, Mapping):
        _refuse("a filter must be a mapping of keys to conditions", where, 'write it as {"key": value}')
    return _joined("AND", [_clause(key, value) for key, value in where.items()])


def _joined(word: str, parts: list[Condition]) -> Condition:
    if not parts:
        return "1", []
    return f"({f' {word} '.join(sql for sql, _ in parts)})", [value for _, values in parts for value in values]


def _negated(condition: Condition) -> Condition:
    return f"NOT {condition[0]}", condition[1]


def _clause(key: object, value: Any) -> Condition:
    if not isinstance(key, str):
        _refuse("the keys of a filter must be strings", key, "metadata keys are strings too")
    if key in ("$and", "$or"):
        if not isinstance(value, list | tuple) or not value:
            _refuse(f"`{key}` takes a list of at least one filter", value, f'write {{"{key}": [filter, filter]}}')
        return _joined(key[1:].upper(), [_filter(part) for part in value])
    if key == "$not":
        return _negated(_filter(value))
    if key == "$id":
        return _has_id(value)
    if key.startswith("$"):
        rule = "the operators outside a key are $and, $or, $not and $id"
        _refuse(rule, key, 'others go under a key: {"year": {"$gt": 1990}}')
    _check_text(key)
    if isinstance(value, Mapping):
        return _operators(key, value)
    return _equal(key, value, "$eq")


def _operators(key: str, operators: Mapping[Any, Any]) -> Condition:
    if not operators:
        _refuse(f"the condition on `{key}` names no operator", operators, f"use one of {', '.join(_OPERATORS)}")
    return _joined("AND", [_operator(key, name, operand) for name, operand in operators.items()])


def _operator(key: str, name: object, operand: Any) -> Condition:
    match name:
        case "$eq":
            return _equal(key, operand, "$eq")
        case "$ne":
            return _negated(_equal(key, operand, "$ne"))
        case "$in":
            return _one_of(key, operand, "$in")
        case "$nin":
            return _negated(_one_of(key, operand, "$nin"))
        case "$gt" | "$gte" | "$lt" | "$lte":
            return _ordered(key, name, operand)
        case "$contains":
            return _contains(key, operand)
        case "$type":
            if not isinstance(operand, str) or operand not in _TYPES:
                _refuse(f"`$type` on `{key}` takes the name of a JSON type", operand, f"use one of {', '.join(_TYPES)}")
            return _itself(key, f"field.type IN {_TYPES[operand]}")
        case "$exists" | "$empty":
            if not isinstance(operand, bool):
                _refuse(f"`{name}` on `{key}` takes a bool", operand, "write True or False")
            return _itself(key, "1" if name == "$exists" else _FULL, operand is (name == "$exists"))
        case "$not":
            if not isinstance(operand, Mapping):
                _refuse(f"`$not` on `{key}` takes operators", operand, 'write {"$not": {"$gt": 3}}, or $ne')
            return _negated(_operators(key, operand))
    _refuse(f"the condition on `{key}` has an unknown operator", name, f"use one of {', '.join(_OPERATORS)}")


# json_each, because json_extract's paths cannot escape a quote in a key.
_MATCHES = (
    "EXISTS (SELECT 1 FROM json_each(metadata) AS field WHERE field.key = ? AND ({field} OR (field.type = 'array' "
    "AND EXISTS (SELECT 1 FROM json_each(field.value) AS element WHERE {element}))))"
)
_NUMBER_TYPES = _TYPES["number"]
_IS_NULL = "{row}.type = 'null'"
_FULL = (  # not null, "" or []
    "CASE field.type WHEN 'null' THEN 0 WHEN 'text' THEN field.atom <> '' "
    "WHEN 'array' THEN json_array_length(field.value) > 0 ELSE 1 END"
)


def _leaf(key: str, test: str, values: list[Any]) -> Condition:
    """Apply `test`, SQL over a json_each row `{row}`, to the value of a key or to the elements of its list."""
    sql = _MATCHES.format(field=test.format(row="field"), element=test.format(row="element"))
    return sql, [key, *values, *values]


def _itself(key: str, test: str, wanted: bool = True) -> Condition:
    """Apply `test` to the value of a key, not to list elements; `wanted` is the required result."""
    sql = f"EXISTS (SELECT 1 FROM json_each(metadata) AS field WHERE field.key = ? AND {test})"
    return (sql if wanted else f"NOT {sql}"), [key]


def _has_id(operand: object) -> Condition:
    ids = [operand] if isinstance(operand, str) else operand
    if not isinstance(ids, list | tuple | set | frozenset) or not all(isinstance(id, str) for id in ids):
        _refuse("`$id` takes an id or a list of ids", operand, 'write {"$id": ["id", "id"]}')
    # A store cannot contain other ids, and JSON cannot encode them.
    known = [id for id in ids if not any("\ud800" <= character <= "\udfff" for character in id)]
    return "passages.id IN (SELECT value FROM json_each(?))", [json.dumps(known, ensure_ascii=False)]


def _contains(key: str, operand: object) -> Condition:
    _check_scalar(key, operand, "$contains")
    equal, parameters = _equal(key, operand, "$contains") if operand is not None else _leaf(key, _IS_NULL, [])
    listed, among = _itself(key, "field.type = 'array'")
    parts = [(f"({listed} AND {equal})", [*among, *parameters])]
    if isinstance(operand, str):
        sql, name = _itself(key, "field.type = 'text' AND instr(field.atom, ?) > 0")
        parts.append((sql, [*name, operand]))
    return _joined("OR", parts)


def _equal(key: str, operand: object, name: str) -> Condition:
    if operand is None:
        return _joined("OR", [_leaf(key, _IS_NULL, []), _itself(key, "1", wanted=False)])
    _check_scalar(key, operand, name)
    return _one_of(key, [operand], name)


def _one_of(key: str, operand: object, name: str) -> Condition:
    if not isinstance(operand, list | tuple | set | frozenset):
        _refuse(f"`{name}` on `{key}` takes a list of values", operand, f'write {{"{name}": [value, value]}}')
    for value in operand:
        _check_scalar(key, value, name)
    values = [value for value in operand if value is not None]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    texts = [value for value in values if isinstance(value, str)]
    bools = [value for value in values if isinstance(value, bool)]
    # One JSON parameter per type, for lists of any length. SQLite parses the numbers as it does those of the metadata.
    parts = [
        _leaf(key, "({row}.type = '" + kind + "')", [])
        for kind, value in (("true", True), ("false", False))
        if value in bools
    ]
    if numbers:
        test = "{row}.type IN " + _NUMBER_TYPES + " AND {row}.atom IN (SELECT value FROM json_each(?))"
        parts.append(_glanced(key, numbers, _leaf(key, test, [json.dumps(numbers)])))
    if texts:
        test = "{row}.type = 'text' AND {row}.atom IN (SELECT value FROM json_each(?))"
        parts.append(_glanced(key, texts, _leaf(key, test, [json.dumps(texts, ensure_ascii=False)])))
    if None in operand:
        parts.append(_equal(key, None, name))
    return _joined("OR", parts) if parts else ("0", [])


def _glanced(key: str, values: list[Any], condition: Condition) -> Condition:
    """First search the JSON text for `"key": value` or `"key": [`, as a store writes it; this is 2.5 times as fast."""
    written = [_written(value) for value in values]
    if len(written) > _MOST_GLANCES or None in written:
        return condition
    name = json.dumps(key, ensure_ascii=False)
    looks = [("instr(metadata, ?)", [f"{name}: {start}"]) for start in (*written, "[")]
    return _joined("AND", [_joined("OR", looks), condition])


def _written(value: float | str) -> str | None:
    """Return the text with which the JSON of every equal value begins; None if it is not unique, as for 0 and -0.0."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if value == 0 or abs(value) >= 1e15:  # from 1e16 on, only floats have an exponent
        return None
    return str(int(value)) if value == int(value) else json.dumps(value)


def _ordered(key: str, name: str, operand: object) -> Condition:
    if isinstance(operand, bool) or not isinstance(operand, int | float | str):
        _refuse(f"`{name}` on `{key}` compares with a number or a string", operand, "use $eq for other values")
    _check_scalar(key, operand, name)
    sign = _ORDERINGS[name]
    if isinstance(operand, str):
        return _leaf(key, "{row}.type = 'text' AND {row}.atom " + sign + " ?", [operand])
    test = "{row}.type IN " + _NUMBER_TYPES + " AND {row}.atom " + sign + " json_extract(?, '$')"
    return _leaf(key, test, [json.dumps(operand)])


def _check_scalar(key: str, value: object, name: str) -> None:
    if value is not None and not isinstance(value, str | int | float):
        _refuse(f"`{name}` on `{key}` compares with a string, number, bool or None", value, "use $in for a list")
    if isinstance(value, float) and not abs(value) < float("inf"):
        _refuse(f"`{name}` on `{key}` compares with finite numbers", value, "JSON has no NaN and no infinity")
    if isinstance(value, str):
        _check_text(value)


def _check_text(text: str) -> None:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        _refuse("the strings of a filter are Unicode text without NUL and lone surrogates", text, "remove those")
