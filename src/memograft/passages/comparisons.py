"""Filters as trees of comparisons, as the frameworks have them: translated to the store's filters, or judged in Python.

`split(tree)` gives a filter of the store and the parts that it cannot express. A passage matches if it meets the one
and `matches` all of the others, so that no filter is ever applied to the best few of a search only; `where_of` looks
those passages up. Comparisons mean what they mean in llama-index-core, with three differences: groups nest; values of
types that cannot be compared do not match; a comparison without meaning is refused. A bool in the metadata counts as 1
or 0.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeAlias

from memograft.errors import FilterError
from memograft.passages.filters import compile_filter
from memograft.passages.vector_store import VectorStore

__all__ = ["Comparison", "Group", "Part", "matches", "split", "where_of"]

Where = dict[str, Any]

_ORDERINGS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    ">": ("$gt", operator.gt),
    ">=": ("$gte", operator.ge),
    "<": ("$lt", operator.lt),
    "<=": ("$lte", operator.le),
}
_OF_LISTS = ("in", "nin", "any", "all")
_OF_TEXTS = ("text_match", "text_match_insensitive")
_OPERATORS = ("==", "!=", *_ORDERINGS, *_OF_LISTS, "contains", *_OF_TEXTS, "is_empty")
_NOT_A_LIST = {"$not": {"$type": "array"}}
_COMPANY = {"$and": [{"$id": []}, {"source": {"$in": []}}]}  # as large as what a filter is usually joined with
_LARGEST = 2**63  # SQLite rounds integers from here on


@dataclass(frozen=True)
class Comparison:
    """A condition on one key of the metadata.

    Attributes:
        key: the key.
        operator: == != > >= < <= compare with a value; "in" and "nin" with a list of values; "contains" asks for a part
            of a text or an element of a list, "any" and "all" for one or all of a list of these; "text_match" and
            "text_match_insensitive" for a part of a text; "is_empty" for null, "", [] or no value.
        value: what the metadata's value is compared with.
    """

    key: str
    operator: str
    value: object = None


@dataclass(frozen=True)
class Group:
    """Several conditions.

    Attributes:
        parts: the conditions. Without any, every passage matches.
        how: whether all ("and"), at least one ("or") or none ("not") of them must be met.
    """

    parts: tuple[Comparison | Group, ...]
    how: Literal["and", "or", "not"] = "and"


Part: TypeAlias = Comparison | Group


def where_of(tree: Group, where: Where, store: VectorStore | None) -> Where:
    """Return one filter of the store that means `where` and `tree`; parts it cannot express become ids looked up now.

    Raises:
        FilterError: a comparison whose value does not go with its operator.
    """
    translated, rest = split(tree)
    both = _all([each for each in (translated, where) if each])
    if not rest or store is None:
        return both
    return {"$id": [each.id for each in store.find(both) if all(matches(part, each.metadata) for part in rest)]}


def split(tree: Group) -> tuple[Where, list[Part]]:
    """Return (filter of the store, parts that only `matches` can judge).

    Raises:
        FilterError: a comparison whose value does not go with its operator.
    """
    _check(tree)
    where, rest = _split(tree)
    try:
        compile_filter({"$and": [where, _COMPANY]})
    except FilterError:  # larger or deeper than SQLite takes; each single condition has been checked
        return {}, [tree]
    return where, rest


def matches(part: Part, metadata: Mapping[str, object]) -> bool:
    """Whether metadata meets a comparison or a group of them."""
    if isinstance(part, Comparison):
        return _leaf_matches(part, metadata.get(part.key))
    if not part.parts:
        return True
    found = (matches(inner, metadata) for inner in part.parts)
    if part.how == "or":
        return any(found)
    return not any(found) if part.how == "not" else all(found)


# refusals -----------------------------------------------------------------------------------------------------------


def _check(part: Part) -> None:
    if isinstance(part, Group):
        for inner in part.parts:
            _check(inner)
    else:
        _check_leaf(part)


def _check_leaf(leaf: Comparison) -> None:
    name, value = leaf.operator, leaf.value
    if name not in _OPERATORS:
        raise FilterError(f"`{leaf.key}` is filtered by an unknown operator, got {name!r}; use {', '.join(_OPERATORS)}")
    if name == "is_empty":
        return
    if value is None:
        _refuse(leaf, "takes a value", "ask for lacking, null and empty ones with the operator 'is_empty'")
    if name in _OF_LISTS and not isinstance(value, list):
        _refuse(leaf, "takes a list", "write value=[...]")
    if name not in (*_OF_LISTS, "==", "!=") and isinstance(value, list):
        _refuse(leaf, "takes one value", "use in, any or all for several")
    if name in _OF_TEXTS and not isinstance(value, str):
        _refuse(leaf, "takes a string", "use == for numbers")


def _refuse(leaf: Comparison, rule: str, remedy: str) -> NoReturn:
    raise FilterError(f"the operator {leaf.operator!r} on `{leaf.key}` {rule}, got {leaf.value!r}; {remedy}")


# to the store's filters ----------------------------------------------------------------------------------------------


def _split(group: Group) -> tuple[Where, list[Part]]:
    if group.how != "and":
        whole = _translated(group)
        return ({}, [group]) if whole is None else (whole, [])
    wheres: list[Where] = []
    rest: list[Part] = []
    for part in group.parts:
        where, left = _split(part) if isinstance(part, Group) else (_leaf(part), [])
        if where is None:
            rest.append(part)
        elif where:
            wheres.append(where)
        rest.extend(left)
    return _all(wheres), rest


def _all(wheres: list[Where]) -> Where:
    return {"$and": wheres} if len(wheres) > 1 else wheres[0] if wheres else {}


def _translated(part: Part) -> Where | None:
    """Return the filter of the store that means the same, None if there is none."""
    if isinstance(part, Comparison):
        return _leaf(part)
    inner = [_translated(each) for each in part.parts]
    wheres = [where for where in inner if where is not None]
    if len(wheres) < len(inner):
        return None
    if not wheres or part.how == "and":
        return _all([where for where in wheres if where])
    either = {"$or": wheres}
    return {"$not": either} if part.how == "not" else either


def _leaf(leaf: Comparison) -> Where | None:
    key, value = leaf.key, leaf.value
    if key.startswith("$") or not all(map(_portable, [key, *(value if isinstance(value, list) else [value])])):
        return None
    match leaf.operator:
        case "==" | "!=" if not isinstance(value, list):
            equal = _one_of(key, [value])
            return equal if leaf.operator == "==" else {"$not": equal}
        case "in" if isinstance(value, list):
            return _one_of(key, value)
        case "nin" if isinstance(value, list):
            return {"$not": _one_of(key, value)}
        case ">" | ">=" | "<" | "<=":
            return _ordered(key, leaf.operator, value)
        case "contains":
            return _contains(key, value)
        case "any" if isinstance(value, list) and value:
            return {"$or": [_contains(key, each) for each in value]}
        case "all" if isinstance(value, list) and value:
            return {"$and": [_contains(key, each) for each in value]}
        case "text_match":
            return {key: {"$contains": value, "$type": "string"}}
        case "is_empty":
            return {key: {"$empty": True}}
    return None  # lists as a whole, and letters of either case, which SQLite knows for ASCII only


def _portable(value: object) -> bool:
    """Whether SQLite reads this as Python does."""
    if isinstance(value, str):
        return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
    return value is None or (isinstance(value, int | float) and -_LARGEST < value < _LARGEST)  # False for NaN, too


def _with_bools(values: Iterable[object]) -> list[object]:
    """Return the values, and True for a 1 and False for a 0."""
    return [same for value in values for same in ([value, bool(value)] if value in (0, 1) else [value])]


def _one_of(key: str, values: Iterable[object]) -> Where:
    return {key: {"$in": _with_bools(values), **_NOT_A_LIST}}


def _contains(key: str, value: object) -> Where:
    alike = [{key: {"$contains": same}} for same in _with_bools([value])]
    return {"$or": alike} if len(alike) > 1 else alike[0]


def _ordered(key: str, name: str, value: object) -> Where:
    sign, compare = _ORDERINGS[name]
    ordered = {key: {sign: value, **_NOT_A_LIST}}
    if isinstance(value, str):
        return ordered
    return {"$or": [ordered, {key: {"$in": [flag for flag in (False, True) if compare(flag, value)], **_NOT_A_LIST}}]}


# in Python ----------------------------------------------------------------------------------------------------------


def _leaf_matches(leaf: Comparison, found: object) -> bool:
    name, value = leaf.operator, leaf.value
    if name == "is_empty":
        return found is None or found in ("", [])
    if found is None:
        return name in ("!=", "nin")
    if name in _ORDERINGS:
        return _comparable(found, value) and _ORDERINGS[name][1](found, value)
    values = value if isinstance(value, list) else [value]
    match name:
        case "==":
            return bool(found == value)
        case "!=":
            return bool(found != value)
        case "in":
            return found in values
        case "nin":
            return found not in values
        case "contains" | "any":
            return any(_holds(found, each) for each in values)
        case "all":
            return all(_holds(found, each) for each in values)
        case "text_match":
            return isinstance(found, str) and str(value) in found
    return isinstance(found, str) and str(value).lower() in found.lower()  # text_match_insensitive


def _comparable(found: object, value: object) -> bool:
    if isinstance(value, str):
        return isinstance(found, str)
    return isinstance(found, int | float)


def _holds(found: object, value: object) -> bool:
    """Whether a text has this part, or a list this element."""
    if isinstance(found, str):
        return isinstance(value, str) and value in found
    return isinstance(found, list) and value in found
