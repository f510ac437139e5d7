"""Operations on JSON schemas: traverse one, and close its objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

__all__ = ["closed", "parts_changed"]

_VALUES = ("const", "enum", "default", "examples", "required")  # keywords whose values are data, not schemas
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # name -> schema
_COMPOSING = ("anyOf", "oneOf", "$ref")
_SAME = ("allOf", "anyOf", "oneOf", "if", "then", "else", "not")  # their schemas describe the same object
_DEFINITIONS = ("#/$defs/", "#/definitions/")


def parts_changed(schema: Mapping[str, object], change: Callable[[str, object], object]) -> dict[str, object]:
    """The schema with each directly contained schema replaced by `change(keyword, part)`.

    The keys of `properties` and of definitions are names and are not changed, even if they look like keywords.
    """
    changed: dict[str, object] = {}
    for key, value in schema.items():
        if key in _VALUES:
            changed[key] = value
        elif key in _NAMED and isinstance(value, Mapping):
            changed[key] = {name: change(key, part) for name, part in value.items()}
        elif isinstance(value, list | tuple):
            changed[key] = [change(key, part) for part in value]
        else:
            changed[key] = change(key, value) if isinstance(value, Mapping) else value
    return changed


def closed(schema: Mapping[str, object]) -> dict[str, object]:
    """Add `additionalProperties: false` to objects that name their properties and do not mention others.

    Otherwise a model could go on inventing properties. Objects whose properties are named in several places (`allOf`,
    or `properties` beside `anyOf`, `oneOf` or `$ref`) are not changed, because these would exclude each other; nor are
    the definitions that they refer to.
    """
    shared = _shared(schema)

    def close(part: object) -> object:
        if not isinstance(part, Mapping) or _composed(part):
            return part
        changed = parts_changed(part, lambda _, inner: close(inner))
        for place in ("$defs", "definitions"):
            definitions, own = changed.get(place), part.get(place)
            if isinstance(definitions, dict) and isinstance(own, Mapping):
                changed[place] = {name: own[name] if name in shared else value for name, value in definitions.items()}
        if isinstance(part.get("properties"), Mapping) and "patternProperties" not in part:
            changed.setdefault("additionalProperties", False)
        return changed

    # Definitions are closed even if the schema itself is composed.
    result = close({key: value for key, value in schema.items() if key in ("$defs", "definitions")})
    rest = close({key: value for key, value in schema.items() if key not in ("$defs", "definitions")})
    assert isinstance(result, dict)
    assert isinstance(rest, Mapping)
    return {**result, **rest}


def _composed(schema: Mapping[str, object]) -> bool:
    """Whether several parts of the schema describe one object."""
    return "allOf" in schema or ("properties" in schema and any(key in schema for key in _COMPOSING))


def _shared(schema: Mapping[str, object]) -> set[str]:
    """The definitions that composed objects refer to, directly or through other definitions."""
    references: set[str] = set()
    definitions: dict[str, object] = {}

    def look(part: object, inside: bool) -> None:
        if not isinstance(part, Mapping):
            return
        inside = inside or _composed(part)
        if inside:
            references.update(_named(part))
        for place in ("$defs", "definitions"):
            if isinstance(part.get(place), Mapping):
                definitions.update(part[place])
        parts_changed(part, lambda key, inner: look(inner, inside and key in _SAME))

    look(schema, False)
    known: set[str] = set()
    while new := references - known:
        known |= new
        for name in new:
            look(definitions.get(name), True)
    return known


def _named(schema: Mapping[str, object]) -> Iterator[str]:
    """The name of the definition that a schema refers to, if any."""
    reference = schema.get("$ref")
    for place in _DEFINITIONS:
        if isinstance(reference, str) and reference.startswith(place):
            yield reference.removeprefix(place)
