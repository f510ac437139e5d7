"""Copy a `VectorStore` into a PostgreSQL table with pgvector and back, with its vectors; nothing is embedded again.

The table has the form of langchain-postgres (`PGVectorStore`): the columns `langchain_id`, `content`, `embedding` and
`langchain_metadata`. Ids are text and vectors are stored exactly. The embedder is in the table's comment, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from memograft.documents import Document
from memograft.errors import MissingExtraError, SettingsError, StoreError
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
    from psycopg import Connection
    from psycopg.sql import Composed

    Row = tuple[str, str, list[float], dict[str, object] | None]

__all__ = ["embedder_of", "from_pgvector", "to_pgvector"]

_ABOUT = "memograft"
_COLUMNS = ("langchain_id", "content", "embedding", "langchain_metadata")
_SELECT = "SELECT langchain_id::text, content, embedding::real[], langchain_metadata FROM {} "


def to_pgvector(store: VectorStore, url: str, table: str, *, batch_size: int = 256, progress: bool = True) -> Copied:
    """Copy all passages of a store into a table, which is created if it does not exist, as is the extension.

    Rows with the same content are not written again, and each batch is committed, so an interrupted copy can be
    repeated. Rows of the table that the store does not have stay. No vector index is made.

    Args:
        store: the store; its vectors are copied as they are, of length 1.
        url: "postgresql://user:password@host/database".
        table: "table" or "schema.table".
        batch_size: number of passages per transaction.
        progress: show a progress bar on a terminal.

    Raises:
        SettingsError: the store has no vectors, or the table has other columns or vectors of another length.
        EmbedderMismatchError: the table was made from a store with another embedder.
        StoreError: the database cannot be reached or refuses, such as a text with NUL or a right that the user lacks.
        MissingExtraError: psycopg is not installed.
    """
    check_count("batch_size", batch_size, "256 is usual")
    check_vectors(store)
    with _opened(url) as connection:
        if not _exists(connection, table):
            _create(connection, table, store.embedder)
        _check(connection, table, store.embedder)
        ids = [document.id for document in store.find()]
        written = 0
        with progress_bar(len(ids), "Copying", "passage", progress) as bar:
            for some in batches(ids, batch_size):
                written += _put(connection, table, store.get(some), store.vectors(some))
                connection.commit()
                bar.update(len(some))
    return Copied(len(ids), written)


def from_pgvector(url: str, table: str, store: VectorStore, *, batch_size: int = 256, progress: bool = True) -> Copied:
    """Copy all rows of a table of `to_pgvector` or langchain-postgres's `PGVectorStore` into a store.

    The table has the default columns. If it does not record its embedder, only the vectors' length can be checked.
    Passages that the store has with the same content are not written again, and those that the table lacks stay.

    Args:
        url: "postgresql://user:password@host/database".
        table: "table" or "schema.table".
        store: the store to write to.
        batch_size: number of rows at once.
        progress: show a progress bar on a terminal.

    Raises:
        SettingsError: other columns, or vectors of another length.
        EmbedderMismatchError: the vectors are of another embedder than the store's.
        StoreError: there is no such table, or the database cannot be reached, or the store cannot be written.
        MissingExtraError: psycopg is not installed.
    """
    check_count("batch_size", batch_size, "256 is usual")
    with _opened(url) as connection:
        from psycopg import sql

        _check(connection, table, store.embedder)
        count = sql.SQL("SELECT count(*) FROM {}").format(_named(table))
        (total,) = connection.execute(count).fetchone() or (0,)
        done = written = 0
        with (
            progress_bar(total, "Copying", "passage", progress) as bar,
            connection.cursor("memograft") as cursor,  # on the server, so that the rows are not all in memory
        ):
            cursor.execute(sql.SQL(_SELECT).format(_named(table)))
            while rows := cursor.fetchmany(batch_size):
                documents = [_document(row) for row in rows]
                written += add_changed(store, documents, _vectors(rows, store.embedder.dimension))
                done += len(rows)
                bar.update(len(rows))
    return Copied(done, written)


def embedder_of(url: str, table: str, embedder: Embedder | None = None) -> Embedder:
    """Return an embedder for a new store with a table's vectors: the given one, checked, or the recorded one.

    Raises:
        SettingsError: the table does not record its embedder and none is given, or as `from_pgvector`.
        EmbedderMismatchError, StoreError, MissingExtraError: as `from_pgvector`.
    """
    with _opened(url) as connection:
        embedder = embedder or recorded_embedder(f"the table {table!r}", _recorded(connection, table))
        _check(connection, table, embedder)
    return embedder


@contextmanager
def _opened(url: str) -> Iterator[Connection]:
    """Connect, and commit at the end. PostgreSQL's errors become StoreErrors."""
    try:
        import psycopg
    except ImportError as error:
        raise MissingExtraError(
            'pgvector needs psycopg, which is not installed; run pip install "memograft[pgvector]"'
        ) from error
    try:
        with psycopg.connect(url) as connection:
            yield connection
    except psycopg.Error as error:
        raise StoreError(
            f"PostgreSQL did not do as asked ({error}); check the URL, the user's rights and the installed extensions"
        ) from error


def _named(table: str) -> Composed:
    from psycopg import sql

    return sql.SQL(".").join(map(sql.Identifier, table.split(".")))


def _exists(connection: Connection, table: str) -> bool:
    row = connection.execute("SELECT to_regclass(%s) IS NOT NULL", [_named(table).as_string(connection)]).fetchone()
    return bool(row and row[0])


def _create(connection: Connection, table: str, embedder: Embedder) -> None:
    from psycopg import sql

    about = json.dumps({_ABOUT: {"fingerprint": embedder.fingerprint, "config": embedder.config()}})
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    connection.execute(
        sql.SQL(
            "CREATE TABLE {} (langchain_id text PRIMARY KEY, content text NOT NULL, embedding vector({}) NOT NULL, "
            "langchain_metadata json)"
        ).format(_named(table), sql.Literal(embedder.dimension))
    )
    connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(_named(table), sql.Literal(about)))
    connection.commit()


def _check(connection: Connection, table: str, embedder: Embedder) -> None:
    """Refuse a table of another form, or whose vectors cannot be compared with the embedder's."""
    recorded = _recorded(connection, table)
    rows = connection.execute(
        "SELECT attname, atttypmod FROM pg_attribute "
        "WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
        [_named(table).as_string(connection)],
    ).fetchall()
    columns: dict[str, int] = dict(rows)  # pgvector keeps the length of a column's vectors as its modifier
    if not set(_COLUMNS) <= set(columns):
        raise SettingsError(
            f"the table {table!r} must have the columns {', '.join(_COLUMNS)}, got {', '.join(sorted(columns))}; use "
            "another table"
        )
    check_comparable(f"the table {table!r}", columns["embedding"], recorded, embedder)


def _recorded(connection: Connection, table: str) -> JsonObject | None:
    """What `to_pgvector` recorded about the embedder."""
    if not _exists(connection, table):
        raise StoreError(f"there is no table {table!r} in the database; check the name, and the schema before it")
    name = _named(table).as_string(connection)
    row = connection.execute("SELECT obj_description(to_regclass(%s), 'pg_class')", [name]).fetchone()
    try:
        about = json.loads(row[0]) if row and row[0] else None
    except ValueError:  # a comment of somebody else
        return None
    recorded: JsonObject | None = about.get(_ABOUT) if isinstance(about, dict) else None
    return recorded


def _put(connection: Connection, table: str, documents: Sequence[Document], vectors: FloatArray) -> int:
    """Write the rows that are new or different, and return how many."""
    from psycopg import sql

    ids = [document.id for document in documents]
    rows = connection.execute(
        sql.SQL(_SELECT + "WHERE langchain_id::text = ANY(%s)").format(_named(table)), [ids]
    ).fetchall()
    there = {
        row[0]: (_document(row), vector) for row, vector in zip(rows, _vectors(rows, vectors.shape[1]), strict=True)
    }
    changed = [
        (document.id, document.text, vector.tolist(), json.dumps(document.metadata))
        for document, vector in zip(documents, vectors, strict=True)
        if document.id not in there or not equal(*there[document.id], document, vector)
    ]
    insert = sql.SQL(
        "INSERT INTO {} (langchain_id, content, embedding, langchain_metadata) "
        "VALUES (%s, %s, (%s::real[])::vector, %s) ON CONFLICT (langchain_id) DO UPDATE SET "
        "content = excluded.content, embedding = excluded.embedding, langchain_metadata = excluded.langchain_metadata"
    ).format(_named(table))
    with connection.cursor() as cursor:
        cursor.executemany(insert, changed)
    return len(changed)


def _document(row: Row) -> Document:
    return Document(row[1], row[0], row[3] or {})


def _vectors(rows: Sequence[Row], dimension: int) -> FloatArray:
    """The (N, D) unit vectors of N rows."""
    if not rows:
        return np.zeros((0, dimension), np.float32)
    return checked_vectors([row[2] for row in rows], (len(rows), dimension), "the vectors of the table must have")
