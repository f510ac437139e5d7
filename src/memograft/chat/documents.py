"""Convert documents in any form that callers use to `memograft.Document`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from memograft.documents import Document
from memograft.errors import SettingsError

__all__ = ["Convert", "json_like", "to_documents"]

_DEEPEST = 20  # levels of nested metadata, which also ends circular values

# Converts an item of a framework's own class, given with its index, to documents; None for anything else.
Convert = Callable[[object, int], Document | Iterable[Document] | None]


def to_documents(
    items: object,
    convert: Convert | None = None,
    *,
    forms: str = "a Document, a string, or a mapping with `text` (or `page_content`)",
    remedy: str = "wrap it as memograft.Document(text)",
) -> tuple[Document, ...]:
    """Documents in the same order (highest-ranked first), with metadata of JSON values.

    An item is a Document, a string (its text), a mapping with `text` or `page_content` and optionally `id` and
    `metadata`, or anything that `convert` accepts; one item may give several documents.

    Args:
        items: an iterable of items, or None.
        convert: see `Convert`.
        forms: the accepted forms, for errors.
        remedy: what to do about other forms, for errors.

    Raises:
        SettingsError: an item is none of these, or a single document was passed instead of a list.
    """
    if items is None:
        return ()
    single = isinstance(items, str | bytes | Mapping | Document) or not isinstance(items, Iterable)
    if single or (convert is not None and convert(items, 0) is not None):
        raise SettingsError(
            f"`documents` must be a list of documents, got one {type(items).__name__}; write documents=[...]"
        )
    assert isinstance(items, Iterable)
    return tuple(
        Document(document.text, document.id, json_like(document.metadata))
        for position, item in enumerate(items)
        for document in _documents(item, position, convert, forms, remedy)
    )


def json_like(metadata: Mapping[object, object] | Mapping[str, object]) -> dict[str, object]:
    """Metadata as JSON values: other values become text, and NaN and infinities None.

    Memories are saved with their documents' metadata, which must not fail.
    """
    return {str(key): _json_value(value, 1) for key, value in metadata.items()}


def _documents(item: object, position: int, convert: Convert | None, forms: str, remedy: str) -> Iterable[Document]:
    if isinstance(item, Document):
        return [item]
    if isinstance(item, str):
        return [Document(item)]
    if convert is not None and (made := convert(item, position)) is not None:
        return [made] if isinstance(made, Document) else made
    if isinstance(item, Mapping):
        text, metadata = item.get("page_content", item.get("text")), item.get("metadata") or {}
        if isinstance(text, str) and isinstance(metadata, Mapping):
            return [Document(text, str(item.get("id") or item.get("id_") or ""), dict(metadata))]
    raise SettingsError(f"documents[{position}] must be {forms}, got {type(item).__name__}; {remedy}")


def _json_value(value: object, depth: int) -> object:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {str(k): _json_value(v, depth + 1) for k, v in value.items()}
    if depth < _DEEPEST and isinstance(value, list | tuple):
        return [_json_value(v, depth + 1) for v in value]
    try:
        return str(value)
    except Exception:  # a faulty __str__
        return f"<{type(value).__name__}>"
