"""Copy a `VectorStore` into a Qdrant collection and back, with its vectors, so that nothing is embedded again.

The collection has the form of langchain-qdrant: one unnamed vector with cosine distance, and the payload keys
`page_content` and `metadata`. A passage's own id is in the payload as `memograft_id`, and the embedder is in the
collection's metadata as `memograft`.

Folders are opened with Qdrant's local mode, which unpickles what is in them, so open folders of people you trust.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from memograft.documents import Document
from memograft.errors import MissingExtraError, SettingsError, StoreError, StoreLockedError
from memograft.passages.checks import FloatArray, check_count, checked_vectors
from memograft.passages.embedders import Embedder
from memograft.passages.migration import (
    Copied,
    add_changed,
    batches,
    check_comparable,
    check_vectors,
    equal,
    recorded_embedder,
)
from memograft.passages.progress import progress_bar
from memograft.passages.vector_store import VectorStore
from memograft.storage.disk import JsonObject

if TYPE_CHECKING:
    from qdrant_client import QdrantClient
    from qdrant_client.models import Record

__all__ = ["embedder_of", "from_qdrant", "point_id", "to_qdrant"]

_TEXT, _METADATA = "page_content", "metadata"  # langchain-qdrant's keys
_ID, _ABOUT = "memograft_id", "memograft"
_VECTOR = ""  # the unnamed vector
_SPACE = uuid.UUID("6f0d4c52-5b0e-5b0c-9d43-0f5f0a0f8a11")  # never change it: all point ids would change
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")  # Qdrant's numbers have 64 bits
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def to_qdrant(
    store: VectorStore,
    target: str | Path | QdrantClient,
    collection: str,
    *,
    api_key: str | None = None,
    batch_size: int = 256,
    progress: bool = True,
) -> Copied:
    """Copy all passages of a store into a Qdrant collection, which is created if it does not exist.

    Points with the same content are not written again, so an interrupted copy can be repeated. Points of the collection
    that the store does not have stay.

    Args:
        store: the store; its vectors are copied as they are, of length 1.
        target: a server's URL ("http://..." or "https://..."), a folder for Qdrant's local mode, or a client.
        collection: the collection's name.
        api_key: key of the server.
        batch_size: number of passages per request.
        progress: show a progress bar on a terminal.

    Raises:
        SettingsError: the store has no vectors, or the collection has vectors of another length, metric or name.
        EmbedderMismatchError: the collection was made from a store with another embedder.
        StoreLockedError: another client has the folder open.
        StoreError: the server cannot be reached or refuses, or the folder cannot be used.
        MissingExtraError: qdrant-client is not installed.
    """
    check_count("batch_size", batch_size, "256 is usual")
    check_vectors(store)
    with _opened(target, api_key) as client:
        if client.collection_exists(collection):
            _check(client, collection, store.embedder)
        else:
            _create(client, collection, store.embedder)
        ids = [document.id for document in store.find()]
        written = 0
        with progress_bar(len(ids), "Copying", "passage", progress) as bar:
            for some in batches(ids, batch_size):
                written += _put(client, collection, store.get(some), store.vectors(some))
                bar.update(len(some))
    return Copied(len(ids), written)


def from_qdrant(
    source: str | Path | QdrantClient,
    collection: str,
    store: VectorStore,
    *,
    api_key: str | None = None,
    batch_size: int = 256,
    progress: bool = True,
) -> Copied:
    """Copy all points of a Qdrant collection into a store, with their vectors.

    The collection was written by `to_qdrant`, or by langchain-qdrant with its default keys, dense vectors and cosine
    distance; a passage then has the point's id. The store's embedder must be the one of the vectors. If the collection
    does not record it, as one of langchain-qdrant, only the length of the vectors can be checked. Passages that the
    store has with the same content are not written again, and those that the collection does not have stay.

    Args:
        source: a server's URL, a folder of Qdrant's local mode, or a client.
        collection: the collection's name.
        store: the store to write to.
        api_key: key of the server.
        batch_size: number of points per request.
        progress: show a progress bar on a terminal.

    Raises:
        SettingsError: vectors of another length, metric or name, or a point without text. What was copied before such a
            point stays.
        EmbedderMismatchError: the vectors are of another embedder than the store's.
        StoreLockedError: another client has the folder open.
        StoreError: there is no such collection, the server cannot be reached, or the store cannot be written.
        MissingExtraError: qdrant-client is not installed.
    """
    check_count("batch_size", batch_size, "256 is usual")
    with _opened(source, api_key, existing=True) as client:
        _check(client, collection, store.embedder)
        total = client.count(collection, exact=True).count
        done = written = 0
        with progress_bar(total, "Copying", "passage", progress) as bar:
            for records in _pages(client, collection, batch_size):
                vectors = _vectors(records, store.embedder.dimension)
                written += add_changed(store, [_document(record) for record in records], vectors)
                done += len(records)
                bar.update(len(records))
    return Copied(done, written)


def embedder_of(
    source: str | Path | QdrantClient,
    collection: str,
    embedder: Embedder | None = None,
    *,
    api_key: str | None = None,
) -> Embedder:
    """Return an embedder for a new store with a collection's vectors: the given one, checked, or the recorded one.

    Raises:
        SettingsError: the collection does not record its embedder and none is given, or as `from_qdrant`.
        EmbedderMismatchError, StoreLockedError, StoreError, MissingExtraError: as `from_qdrant`.
    """
    with _opened(source, api_key, existing=True) as client:
        if embedder is None:
            embedder = recorded_embedder(f"the collection {collection!r}", _recorded(client, collection))
        _check(client, collection, embedder)
    return embedder


def point_id(id: str) -> str | int:
    """Return the id of a passage's point: a UUID and a number are kept, any other id becomes a UUID (version 5).

    Example:
        >>> point_id("guides/start.md#0")
        '915224c0-923a-558b-bf0a-e627b42c35b8'
        >>> point_id("17")
        17
    """
    if _NUMBER.fullmatch(id):
        return int(id)
    return id if _UUID.fullmatch(id) else str(uuid.uuid5(_SPACE, id))


@contextmanager
def _opened(target: str | Path | QdrantClient, api_key: str | None, existing: bool = False) -> Iterator[QdrantClient]:
    """Open a client, and close it unless it was given. Qdrant's errors become StoreErrors."""
    try:
        from qdrant_client import QdrantClient
        from qdrant_client.http.exceptions import ApiException
    except ImportError as error:
        raise MissingExtraError(
            'Qdrant needs qdrant-client, which is not installed; run pip install "memograft[qdrant]"'
        ) from error
    if isinstance(target, QdrantClient):
        client, name = target, "Qdrant"
    else:
        name = str(target)
        if name.startswith(("http://", "https://")):
            # The check of versions runs in a thread, whose warning could come after an error.
            client = QdrantClient(url=name, api_key=api_key, check_compatibility=False)
        else:
            client = _local(Path(target), existing)
    try:
        yield client
    except ApiException as error:
        raise StoreError(f"{name} did not do as asked ({error}); check its address, key and log") from error
    finally:
        if client is not target:
            client.close()


def _local(folder: Path, existing: bool) -> QdrantClient:
    from qdrant_client import QdrantClient

    if existing and not (folder / "meta.json").is_file():
        raise StoreError(f"{folder} is not a folder of Qdrant's local mode; check the path, or pass a URL: http://...")
    try:
        return QdrantClient(path=str(folder))
    except RuntimeError as error:
        raise StoreLockedError(f"another Qdrant client has {folder} open ({error}); close it first") from error
    except OSError as error:
        raise StoreError(f"{folder} cannot be used by Qdrant ({error}); pass a folder that can be written") from error


def _create(client: QdrantClient, collection: str, embedder: Embedder) -> None:
    from qdrant_client.models import Distance, VectorParams

    about = {"fingerprint": embedder.fingerprint, "config": embedder.config()}
    client.create_collection(
        collection,
        vectors_config=VectorParams(size=embedder.dimension, distance=Distance.COSINE),
        metadata={_ABOUT: about},
    )


def _check(client: QdrantClient, collection: str, embedder: Embedder) -> None:
    """Refuse a collection whose vectors cannot be compared with the embedder's."""
    from qdrant_client.models import Distance

    recorded = _recorded(client, collection)
    vectors = client.get_collection(collection).config.params.vectors
    if isinstance(vectors, dict):  # of langchain-qdrant
        if _VECTOR not in vectors:
            raise SettingsError(
                f"the collection {collection!r} must have an unnamed vector, got {sorted(vectors)}; use another one"
            )
        vectors = vectors[_VECTOR]
    if vectors is None:
        raise SettingsError(f"the collection {collection!r} must have dense vectors, got none; use another one")
    if vectors.distance != Distance.COSINE:
        raise SettingsError(
            f"the collection {collection!r} must compare by cosine, as a store does, got {vectors.distance.value}; "
            "use another one"
        )
    check_comparable(f"the collection {collection!r}", vectors.size, recorded, embedder)


def _recorded(client: QdrantClient, collection: str) -> JsonObject | None:
    """What `to_qdrant` recorded about the embedder."""
    if not client.collection_exists(collection):
        names = sorted(found.name for found in client.get_collections().collections)
        raise StoreError(f"there is no collection {collection!r}, got {names}; check the name")
    recorded: JsonObject | None = (client.get_collection(collection).config.metadata or {}).get(_ABOUT)
    return recorded


def _put(client: QdrantClient, collection: str, documents: Sequence[Document], vectors: FloatArray) -> int:
    """Write the points that are new or different, and return how many."""
    from qdrant_client.models import PointStruct

    points = [point_id(document.id) for document in documents]
    there = {record.id: record for record in client.retrieve(collection, points, with_payload=True, with_vectors=True)}
    changed = [
        PointStruct(
            id=point,
            vector=vector.tolist(),
            payload={_TEXT: document.text, _METADATA: dict(document.metadata), _ID: document.id},
        )
        for point, document, vector in zip(points, documents, vectors, strict=True)
        if point not in there
        or not equal(_document(there[point]), _vectors([there[point]], len(vector))[0], document, vector)
    ]
    if changed:
        client.upsert(collection, changed, wait=True)
    return len(changed)


def _pages(client: QdrantClient, collection: str, size: int) -> Iterator[list[Record]]:
    offset = None
    while True:
        records, offset = client.scroll(collection, limit=size, offset=offset, with_payload=True, with_vectors=True)
        if records:
            yield records
        if offset is None:
            return


def _document(record: Record) -> Document:
    payload = record.payload or {}
    text, metadata = payload.get(_TEXT), payload.get(_METADATA)
    if not isinstance(text, str) or not isinstance(metadata, dict | None):
        raise SettingsError(
            f"a point must have text under {_TEXT!r} and a mapping or nothing under {_METADATA!r}, got the keys "
            f"{sorted(payload)} in the point {record.id}; copy only collections of this form"
        )
    return Document(text, str(payload.get(_ID, record.id)), metadata or {})


def _vectors(records: Iterable[Record], dimension: int) -> FloatArray:
    """The (N, D) unit vectors of N points."""
    found = [record.vector[_VECTOR] if isinstance(record.vector, dict) else record.vector for record in records]
    return checked_vectors(found, (len(found), dimension), "the vectors of the collection must have")
