"""Check the arguments of a store: ids, numbers, metadata and vectors. Accepted values are returned in stored form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar, cast, get_args

import numpy as np
from numpy.typing import NDArray

from memograft.documents import Document
from memograft.errors import SettingsError
from memograft.passages.embedders import Embedder, unit_rows
from memograft.passages.progress import progress_bar
from memograft.passages.search import SearchMode

__all__ = [
    "as_floats",
    "check_count",
    "check_question",
    "check_share",
    "check_varied",
    "checked_ids",
    "checked_items",
    "checked_list",
    "checked_metadata",
    "checked_mode",
    "checked_vectors",
    "embedded",
    "embedded_query",
    "returned",
]

FloatArray = NDArray[np.float32]
T = TypeVar("T")

_SURROGATE = re.compile("[\ud800-\udfff]")  # not a character
_LARGE = 1_000  # texts from which embedding shows a progress bar


def check_question(query: object) -> None:
    """Refuse anything but a string."""
    if not isinstance(query, str):
        raise SettingsError(f"`query` must be a string, got {type(query).__name__}; search_by_vector takes vectors")


def check_count(name: str, value: object, remedy: str = "4 is usual for `k`") -> None:
    """Refuse anything but a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingsError(f"`{name}` must be a whole number of at least 1, got {value!r}; {remedy}")


def check_varied(k: object, fetch_k: object, lambda_mult: object) -> None:
    """Check the arguments of maximal marginal relevance."""
    check_count("fetch_k", fetch_k)
    check_count("k", k)
    check_share("lambda_mult", lambda_mult)


def check_share(name: str, value: object) -> None:
    """Refuse anything but a number between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise SettingsError(f"`{name}` must be between 0 and 1, got {value!r}; 0.5 is usual")


def checked_mode(mode: object, dimension: int) -> SearchMode:
    """Return the search mode; by default by vectors if the store has any."""
    if mode is None:
        return "vector" if dimension else "text"
    if mode not in get_args(SearchMode):
        raise SettingsError(f'`mode` must be "text", "vector" or "hybrid", got {mode!r}; leave it out')
    return cast(SearchMode, mode)


def checked_list(name: str, values: Iterable[T], count: int | None = None, single: type = str) -> list[T]:
    """Return the values of an argument as a list.

    Args:
        name: the argument's.
        values: what was given.
        count: the number of texts, of which there must be as many; None for any number.
        single: a type whose objects can be iterated over and are one value each.

    Raises:
        SettingsError: one value in place of a list, or another number of them.
    """
    if isinstance(values, str | single) or not isinstance(values, Iterable):
        raise SettingsError(f"`{name}` must be a list, got one {type(values).__name__}; write {name}=[...]")
    values = list(values)
    if count is not None and len(values) != count:
        raise SettingsError(f"`{name}` must be as many as the texts, got {len(values)} for {count}; leave it out")
    return values


def checked_items(
    name: str, items: Iterable[T], kind: type[T], what: str = "a string", remedy: str = "convert it first"
) -> list[T]:
    """Return items of one type as a list.

    Args:
        name: the argument's.
        items: what was given.
        kind: the type.
        what: what error messages call the type.
        remedy: what they advise about an object of another type.

    Raises:
        SettingsError: one item in place of a list, or an object of another type; the message has its position.
    """
    items = checked_list(name, items, single=kind)
    for position, item in enumerate(items):
        if not isinstance(item, kind):
            raise SettingsError(f"{name}[{position}] must be {what}, got {type(item).__name__}; {remedy}")
    return items


def checked_ids(ids: Sequence[str], name: str = "ids") -> list[str]:
    """Return the ids as a list. A single string is refused, because its characters would be the ids."""
    if isinstance(ids, str) or not all(isinstance(id, str) for id in ids):
        raise SettingsError(f"`{name}` must be a list of strings, got {ids!r}; write {name}=[...]")
    return [id for id in ids if _is_unicode(id)]  # a store cannot contain others


def checked_metadata(document: Document, position: int, *, needs_text: bool = True) -> str:
    """Return the metadata as JSON; refuse a document that cannot be stored without change."""
    where = f"documents[{position}] (id {document.id!r})"
    if needs_text and not document.text.strip():
        raise SettingsError(f"{where} has no text, got {document.text!r}; leave empty passages out")
    for name in ("text", "id"):
        if not _is_unicode(getattr(document, name)):
            raise SettingsError(
                f"the {name} of {where} must be Unicode text, and has lone surrogates; decode it with errors='replace'"
            )
    if "\0" in document.id:
        raise SettingsError(f"the id of {where} must not contain NUL, which ends texts in SQLite; leave it out")
    if not isinstance(document.metadata, Mapping):
        raise SettingsError(f"the metadata of {where} must be a mapping, got {document.metadata!r}; use a dict")
    parts = [_checked_entry(key, value, where) for key, value in document.metadata.items()]
    return f"{{{', '.join(parts)}}}"


def _checked_entry(key: object, value: object, where: str) -> str:
    """Return `"key": value` as JSON."""
    if not isinstance(key, str):
        raise SettingsError(f"the metadata keys of {where} must be strings, got {key!r}; write {str(key)!r}")
    try:
        entry = f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
        entry.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise SettingsError(
            f"the metadata of {where} must be JSON, got {type(value).__name__} under {key!r} ({error}); turn it into a "
            "string, number, bool, None, list or dict"
        ) from error
    return entry


def _is_unicode(text: str) -> bool:
    return text.isascii() or not _SURROGATE.search(text)


def as_floats(vectors: object, what: str) -> FloatArray:
    """Return numbers as an array of any shape; refuse rows of different lengths and other values."""
    try:
        with np.errstate(over="ignore"):  # overflow gives infinity, which `checked_vectors` refuses
            return np.asarray(vectors, np.float32)
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"{what} numbers in rows of one length, got something else ({error}); look at what they were made from"
        ) from error


def checked_vectors(vectors: object, shape: tuple[int, ...], what: str) -> FloatArray:
    """Return unit vectors (..., D); refuse another shape, and numbers that are not finite in float32."""
    if shape[-1] == 0:
        if isinstance(vectors, np.ndarray) and vectors.shape == shape != (0,):  # an empty array is expected
            return np.zeros(shape, np.float32)
        raise SettingsError(
            'this store was made without an embedder and takes no vectors; search it with mode="text", or make a new '
            "one: VectorStore(embedder)"
        )
    array = as_floats(vectors, what)
    if array.shape != shape:
        raise SettingsError(f"{what} the shape {shape}, got {array.shape}; use the embedder of the store")
    if not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise SettingsError(f"{what} finite numbers, got NaN or infinity in row {row}; look at what it was made from")
    return unit_rows(array.reshape(-1, shape[-1])).reshape(shape)


def embedded(embedder: Embedder, texts: list[str], batch_size: int, progress: bool) -> FloatArray:
    """Return the (N, D) unit vectors of N >= 1 texts, `batch_size` at a time."""
    if embedder.dimension == 0:
        return np.zeros((len(texts), 0), np.float32)
    parts = []
    with progress_bar(len(texts), "Embedding", "passage", progress and len(texts) >= _LARGE) as bar:
        for start in range(0, len(texts), batch_size):
            batch = texts[start : start + batch_size]
            parts.append(returned(embedder, embedder.embed_documents(batch), len(batch)))
            bar.update(len(batch))
    return np.concatenate(parts)


def embedded_query(embedder: Embedder, query: str) -> FloatArray:
    """Return the (D,) unit vector of a question."""
    check_question(query)
    return returned(embedder, embedder.embed_query(query))


def returned(embedder: Embedder, vectors: object, *count: int) -> FloatArray:
    """Return an embedder's output as unit vectors: (N, D) for N = `count` texts, (D,) for one question."""
    return checked_vectors(vectors, (*count, embedder.dimension), f"the embedder {embedder.fingerprint!r} must return")
