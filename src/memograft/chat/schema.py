"""JSON schemas of tools and answers: combine several into one, and print one for a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping

from memograft.decoding.schemas import closed, parts_changed

__all__ = ["closed", "hoisted", "shown"]

_DEFINITIONS = ("$defs", "definitions")


def hoisted(schema: Mapping[str, object], prefix: str, definitions: dict[str, object]) -> dict[str, object]:
    """Make a schema part of another one, whose root its references are then relative to.

    Args:
        schema: may have definitions, or refer to itself ("#").
        prefix: prepended to the names of its definitions, to keep those of several schemas apart.
        definitions: the combined definitions, which are added to.
    """
    whole = f"#/$defs/{prefix}"
    refers_to_itself = False

    def renamed(part: object) -> object:
        nonlocal refers_to_itself
        if not isinstance(part, Mapping):
            return part
        changed = parts_changed(part, lambda _, inner: renamed(inner))
        reference = part.get("$ref")
        if reference == "#":
            changed["$ref"], refers_to_itself = whole, True
        elif isinstance(reference, str):
            for place in _DEFINITIONS:
                if reference.startswith(f"#/{place}/"):
                    changed["$ref"] = whole + reference.removeprefix(f"#/{place}/")
        return changed

    for place in _DEFINITIONS:
        own = schema.get(place)
        for name, part in own.items() if isinstance(own, Mapping) else ():
            definitions[f"{prefix}{name}"] = renamed(part)
    body = renamed({key: value for key, value in schema.items() if key not in _DEFINITIONS})
    assert isinstance(body, dict)
    if refers_to_itself:
        definitions[prefix] = body
    return body


def shown(schema: object) -> str:
    """The schema as short text for a prompt, without titles, which only repeat names."""

    def untitled(part: object) -> object:
        if not isinstance(part, Mapping):
            return part
        return {k: v for k, v in parts_changed(part, lambda _, inner: untitled(inner)).items() if k != "title"}

    return json.dumps(untitled(schema), ensure_ascii=False, separators=(",", ":"))
