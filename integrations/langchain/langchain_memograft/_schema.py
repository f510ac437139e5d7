"""JSON schemas: closing their objects, and putting several into one. Knows no tools and no models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["closed", "hoisted"]

# Keywords whose values are data or names, not schemas.
_DATA = frozenset(("const", "enum", "default", "examples", "required"))


def closed(schema: Any) -> Any:
    """The schema with `additionalProperties: false` wherever objects name their properties and say nothing of others.

    A model would go on inventing properties otherwise. Inside `allOf` nothing is closed: its parts describe one object.
    """
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions") and isinstance(value, Mapping):
            result[key] = {name: closed(part) for name, part in value.items()}
        else:
            result[key] = value if key in _DATA or key == "allOf" else closed(value)
    if "properties" in result and "allOf" not in result:
        result.setdefault("additionalProperties", False)
    return result


def hoisted(schema: Any, prefix: str, definitions: dict[str, Any]) -> Any:
    """The schema as a part of another one: its own definitions go into `definitions`, each name behind `prefix`."""
    if not isinstance(schema, Mapping):
        return schema
    whole = f"#/$defs/{prefix}"
    own = {**schema.get("definitions", {}), **schema.get("$defs", {})}
    body = {k: v for k, v in schema.items() if k not in ("$defs", "definitions")}
    for name, part in own.items():
        definitions[f"{prefix}{name}"] = _renamed(part, prefix, whole)
    renamed = _renamed(body, prefix, whole)
    if _refers_to(body, "#"):
        definitions[prefix] = renamed
    return renamed


def _renamed(schema: Any, prefix: str, whole: str) -> Any:
    if isinstance(schema, list):
        return [_renamed(part, prefix, whole) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties" and isinstance(value, Mapping):  # whose keys are names, even where they look otherwise
            result[key] = {name: _renamed(part, prefix, whole) for name, part in value.items()}
        else:
            result[key] = value if key in _DATA else _renamed(value, prefix, whole)
    reference = schema.get("$ref")
    if reference == "#":
        result["$ref"] = whole
    elif isinstance(reference, str):
        for place in ("#/$defs/", "#/definitions/"):
            if reference.startswith(place):
                result["$ref"] = whole + reference.removeprefix(place)
    return result


def _refers_to(schema: Any, target: str) -> bool:
    if isinstance(schema, list):
        return any(_refers_to(part, target) for part in schema)
    if not isinstance(schema, Mapping):
        return False
    return schema.get("$ref") == target or any(_refers_to(part, target) for part in schema.values())
