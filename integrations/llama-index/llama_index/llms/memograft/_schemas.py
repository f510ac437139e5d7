"""JSON schemas as a model is told them: short, for every token of them is a token less for documents."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["shown"]


def shown(schema: Any) -> str:
    """The schema as text, without the titles that pydantic makes of names."""
    return json.dumps(_untitled(schema), ensure_ascii=False, separators=(",", ":"))


def _untitled(schema: Any, *, names: bool = False) -> Any:
    """`names`: the keys here are names of fields, one of which may be "title"."""
    if isinstance(schema, dict):
        inside = () if names else ("properties", "$defs", "definitions")
        return {k: _untitled(v, names=k in inside) for k, v in schema.items() if names or k != "title"}
    return [_untitled(item) for item in schema] if isinstance(schema, list) else schema
