"""LlamaIndex's `MetadataFilters`: to the core store's filters, and in plain Python what those cannot say.

`split(filters)` gives a core filter and the parts left over; a passage matches if it meets the one and `matches` every
one of the others, so that no filter is ever applied to the best few of a search only. Both mean what
`build_metadata_filter_fn` of llama-index-core means, with three differences: groups nest; values of types that cannot
be compared do not match, where the core raises; a filter that cannot be meant is refused. As MetadataFilter has no
bools, a bool in the metadata counts as 1 or 0. Knows nothing of nodes, vectors and stores.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from memograft.errors import FilterError
from memograft.passages.filters import compile_filter

Part = MetadataFilter | MetadataFilters
Where = dict[str, Any]

_ORDERINGS: dict[FilterOperator, tuple[str, Callable[[Any, Any], bool]]] = {
    FilterOperator.GT: ("$gt", operator.gt),
    FilterOperator.GTE: ("$gte", operator.ge),
    FilterOperator.LT: ("$lt", operator.lt),
    FilterOperator.LTE: ("$lte", operator.le),
}
_OF_LISTS = (FilterOperator.IN, FilterOperator.NIN, FilterOperator.ANY, FilterOperator.ALL)
_OF_TEXTS = (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE)
_NOT_A_LIST = {"$not": {"$type": "array"}}
_LARGEST = 2**63  # SQLite rounds integers from here on


def split(filters: MetadataFilters | None) -> tuple[Where, list[Part]]:
    """Return (core filter, parts that only `matches` can judge).

    Raises:
        FilterError: a filter whose value does not go with its operator.
    """
    if filters is None:
        return {}, []
    _check(filters)
    where, rest = _split(filters)
    try:
        compile_filter({"$and": [where, {"$id": []}]})  # in company, as it will be
    except FilterError:  # larger or deeper than SQLite takes; each single condition has been checked
        return {}, [filters]
    return where, rest


def matches(part: Part, metadata: Mapping[str, Any]) -> bool:
    """Whether metadata meets a filter or a group of them."""
    if isinstance(part, MetadataFilter):
        return _leaf_matches(part, metadata.get(part.key))
    if not part.filters:
        return True
    found = (matches(inner, metadata) for inner in part.filters)
    match part.condition:
        case FilterCondition.OR:
            return any(found)
        case FilterCondition.NOT:
            return not any(found)
    return all(found)


# refusals -----------------------------------------------------------------------------------------------------------


def _check(filters: MetadataFilters) -> None:
    for part in filters.filters:
        if isinstance(part, MetadataFilters):
            _check(part)
        else:
            _check_leaf(part)


def _check_leaf(leaf: MetadataFilter) -> None:
    name, value = leaf.operator, leaf.value
    if name is FilterOperator.IS_EMPTY:
        return
    if value is None:
        _refuse(leaf, "takes a value", "ask for lacking, null and empty ones with FilterOperator.IS_EMPTY")
    if name in _OF_LISTS and not isinstance(value, list):
        _refuse(leaf, "takes a list", "write value=[...]")
    if name not in (*_OF_LISTS, FilterOperator.EQ, FilterOperator.NE) and isinstance(value, list):
        _refuse(leaf, "takes one value", "use in, any or all for several")
    if name in _OF_TEXTS and not isinstance(value, str):
        _refuse(leaf, "takes a string", "use == for numbers")


def _refuse(leaf: MetadataFilter, rule: str, remedy: str) -> NoReturn:
    raise FilterError(f"the operator {leaf.operator.value!r} on `{leaf.key}` {rule}, got {leaf.value!r}; {remedy}")


# to the core's filters ----------------------------------------------------------------------------------------------


def _split(filters: MetadataFilters) -> tuple[Where, list[Part]]:
    if filters.condition in (FilterCondition.OR, FilterCondition.NOT):
        whole = _translated(filters)
        return ({}, [filters]) if whole is None else (whole, [])
    wheres: list[Where] = []
    rest: list[Part] = []
    for part in filters.filters:
        where, left = _split(part) if isinstance(part, MetadataFilters) else (_leaf(part), [])
        if where is None:
            rest.append(part)
        elif where:
            wheres.append(where)
        rest.extend(left)
    return _all(wheres), rest


def _all(wheres: list[Where]) -> Where:
    return {"$and": wheres} if len(wheres) > 1 else wheres[0] if wheres else {}


def _translated(part: Part) -> Where | None:
    """Return the core filter that means the same, None if there is none."""
    if isinstance(part, MetadataFilter):
        return _leaf(part)
    inner = [_translated(each) for each in part.filters]
    wheres = [where for where in inner if where is not None]
    if len(wheres) < len(inner):
        return None
    if not wheres or part.condition in (None, FilterCondition.AND):
        return _all([where for where in wheres if where])
    either = {"$or": wheres}
    return {"$not": either} if part.condition is FilterCondition.NOT else either


def _leaf(leaf: MetadataFilter) -> Where | None:
    key, value = leaf.key, leaf.value
    if key.startswith("$") or not all(map(_portable, [key, *(value if isinstance(value, list) else [value])])):
        return None
    match leaf.operator:
        case FilterOperator.EQ | FilterOperator.NE if not isinstance(value, list):
            equal = _one_of(key, [value])
            return equal if leaf.operator is FilterOperator.EQ else {"$not": equal}
        case FilterOperator.IN if isinstance(value, list):
            return _one_of(key, value)
        case FilterOperator.NIN if isinstance(value, list):
            return {"$not": _one_of(key, value)}
        case FilterOperator.GT | FilterOperator.GTE | FilterOperator.LT | FilterOperator.LTE:
            return _ordered(key, leaf.operator, value)
        case FilterOperator.CONTAINS:
            return _contains(key, value)
        case FilterOperator.ANY if isinstance(value, list) and value:
            return {"$or": [_contains(key, each) for each in value]}
        case FilterOperator.ALL if isinstance(value, list) and value:
            return {"$and": [_contains(key, each) for each in value]}
        case FilterOperator.TEXT_MATCH:
            return {key: {"$contains": value, "$type": "string"}}
        case FilterOperator.IS_EMPTY:
            return {key: {"$empty": True}}
    return None  # lists as a whole, and letters of either case, which SQLite knows for ASCII only


def _portable(value: Any) -> bool:
    """Whether SQLite reads this as Python does."""
    if isinstance(value, str):
        return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
    return value is None or bool(-_LARGEST < value < _LARGEST)  # False for NaN, too


def _with_bools(values: Iterable[Any]) -> list[Any]:
    """Return the values, and True for a 1 and False for a 0."""
    return [same for value in values for same in ([value, bool(value)] if value in (0, 1) else [value])]


def _one_of(key: str, values: Iterable[Any]) -> Where:
    return {key: {"$in": _with_bools(values), **_NOT_A_LIST}}


def _contains(key: str, value: Any) -> Where:
    alike = [{key: {"$contains": same}} for same in _with_bools([value])]
    return {"$or": alike} if len(alike) > 1 else alike[0]


def _ordered(key: str, name: FilterOperator, value: Any) -> Where:
    sign, compare = _ORDERINGS[name]
    ordered = {key: {sign: value, **_NOT_A_LIST}}
    if isinstance(value, str):
        return ordered
    return {"$or": [ordered, {key: {"$in": [flag for flag in (False, True) if compare(flag, value)], **_NOT_A_LIST}}]}


# in Python ----------------------------------------------------------------------------------------------------------


def _leaf_matches(leaf: MetadataFilter, found: Any) -> bool:
    name, value = leaf.operator, leaf.value
    if name is FilterOperator.IS_EMPTY:
        return found is None or found in ("", [])
    if found is None:
        return name in (FilterOperator.NE, FilterOperator.NIN)
    if name in _ORDERINGS:
        return _comparable(found, value) and _ORDERINGS[name][1](found, value)
    values = value if isinstance(value, list) else [value]
    match name:
        case FilterOperator.EQ:
            return bool(found == value)
        case FilterOperator.NE:
            return bool(found != value)
        case FilterOperator.IN:
            return found in values
        case FilterOperator.NIN:
            return found not in values
        case FilterOperator.CONTAINS | FilterOperator.ANY:
            return any(_holds(found, each) for each in values)
        case FilterOperator.ALL:
            return all(_holds(found, each) for each in values)
        case FilterOperator.TEXT_MATCH:
            return isinstance(found, str) and str(value) in found
        case FilterOperator.TEXT_MATCH_INSENSITIVE:
            return isinstance(found, str) and str(value).lower() in found.lower()
    raise FilterError(f"`{leaf.key}` is filtered by an unknown operator, got {name!r}; use one of FilterOperator")


def _comparable(found: Any, value: Any) -> bool:
    if isinstance(value, str):
        return isinstance(found, str)
    return isinstance(found, int | float)


def _holds(found: Any, value: Any) -> bool:
    """Whether a text has this part, or a list this element."""
    if isinstance(found, str):
        return isinstance(value, str) and value in found
    return isinstance(found, list) and value in found
