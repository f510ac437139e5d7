"""`Document`: a piece of retrieved text. `Source`: an example that a datastore was built from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from memograft.errors import SettingsError

__all__ = ["Document", "Source", "as_documents"]


@dataclass(frozen=True)
class Document:
    """A piece of text that was retrieved for a question.

    Attributes:
        text: the text.
        id: stable identity; by default the first 16 hex digits of the text's SHA-256.
        metadata: JSON-like values; never shown to the model.

    Raises:
        SettingsError: `text` or `id` is not a string.

    Example:
        >>> Document("Bergamot is a citrus fruit.").id
        '00f959ca05b27452'
    """

    text: str
    id: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("text", "id"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise SettingsError(
                    f"`Document.{name}` must be a string, got {type(value).__name__}; convert it before you pass it on"
                )
        if not self.id:
            object.__setattr__(self, "id", hashlib.sha256(self.text.encode("utf-8", "replace")).hexdigest()[:16])


@dataclass(frozen=True)
class Source:
    """An example that a datastore was built from.

    Attributes:
        id: its id.
        text: its answer, or the raw text.
        prompt: the last message before the answer.
        metadata: the example's metadata.
    """

    id: str
    text: str
    prompt: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)


def as_documents(items: Iterable[Document | str | Mapping[str, object]] | None) -> tuple[Document, ...]:
    """Convert a `documents=` argument to Documents, in the same order (highest-ranked first).

    A string is a document's text. A mapping needs `text` (or LangChain's `page_content`) and may have `id` and
    `metadata`.

    Raises:
        SettingsError: an item is none of these, or a single item was passed instead of a list.
    """
    if items is None:
        return ()
    if isinstance(items, str | Document | Mapping):
        raise SettingsError(f"`documents` must be a list, got one {type(items).__name__}; write documents=[...]")
    return tuple(_as_document(item, position) for position, item in enumerate(items))


def _as_document(item: object, position: int) -> Document:
    if isinstance(item, Document):
        return item
    if isinstance(item, str):
        return Document(item)
    if isinstance(item, Mapping):
        text = item.get("text", item.get("page_content"))
        if isinstance(text, str):
            return Document(text, str(item.get("id") or ""), dict(item.get("metadata") or {}))
    raise SettingsError(
        f"documents[{position}] must be a Document, a string, or a mapping with `text`, got {type(item).__name__}; "
        "wrap it as memograft.Document(text)"
    )
