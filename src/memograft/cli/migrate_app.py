"""`memograft migrate to-qdrant | from-qdrant | to-pgvector | from-pgvector`: copy a vector store with its vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memograft.cli.console import out, reporting
from memograft.cli.options import STORE, JsonOption, StoreOption

if TYPE_CHECKING:
    from memograft.passages.embedders import Embedder
    from memograft.passages.migration import Copied
    from memograft.passages.vector_store import VectorStore

migrate_app = typer.Typer(
    help="Copy a vector store to and from other databases, with its vectors.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

PlaceArgument = Annotated[
    str, typer.Argument(help="Qdrant server (http://...), or a folder of Qdrant's local mode.", metavar="URL|FOLDER")
]
CollectionArgument = Annotated[str, typer.Argument(help="Name of the collection.")]
KeyOption = Annotated[
    str | None, typer.Option(help="Key of the server; better in the environment.", envvar="QDRANT_API_KEY")
]
UrlArgument = Annotated[
    str,
    typer.Argument(help="postgresql://user@host/database; the password is better in PGPASSWORD.", metavar="URL"),
]
TableArgument = Annotated[str, typer.Argument(help='Name of the table, or "schema.table".')]
EmbedderOption = Annotated[
    str | None,
    typer.Option(
        help='Embedder of the vectors: "lexical" or a sentence-transformers model; left out, that of the store or, for '
        "a new store, the one that was recorded."
    ),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Passages per request.")]


@migrate_app.command("to-qdrant")
def to_qdrant(
    target: PlaceArgument,
    collection: CollectionArgument,
    store: StoreOption = STORE,
    api_key: KeyOption = None,
    batch_size: BatchOption = 256,
    as_json: JsonOption = False,
) -> None:
    """Copy a store into a Qdrant collection that langchain-qdrant can read. A second run writes only what is new."""
    with reporting(as_json) as result:
        from memograft.passages import qdrant
        from memograft.passages.vector_store import VectorStore

        with VectorStore.open(store, read_only=True) as opened:
            copied = qdrant.to_qdrant(
                opened, target, collection, api_key=api_key, batch_size=batch_size, progress=not as_json
            )
        result |= _reported(copied, collection, as_json)


@migrate_app.command("from-qdrant")
def from_qdrant(
    source: PlaceArgument,
    collection: CollectionArgument,
    store: StoreOption = STORE,
    embedder: EmbedderOption = None,
    api_key: KeyOption = None,
    batch_size: BatchOption = 256,
    as_json: JsonOption = False,
) -> None:
    """Copy a Qdrant collection, also one of langchain-qdrant, into a store. A second run writes only what is new."""
    with reporting(as_json) as result:
        from memograft.passages import qdrant

        def checked(named: Embedder | None) -> Embedder:
            return qdrant.embedder_of(source, collection, named, api_key=api_key)

        with _written(store, embedder, checked) as opened:
            copied = qdrant.from_qdrant(
                source, collection, opened, api_key=api_key, batch_size=batch_size, progress=not as_json
            )
        result |= _reported(copied, str(store), as_json)


@migrate_app.command("to-pgvector")
def to_pgvector(
    url: UrlArgument,
    table: TableArgument,
    store: StoreOption = STORE,
    batch_size: BatchOption = 256,
    as_json: JsonOption = False,
) -> None:
    """Copy a store into a table that langchain-postgres can read. A second run writes only what is new."""
    with reporting(as_json) as result:
        from memograft.passages import pgvector
        from memograft.passages.vector_store import VectorStore

        with VectorStore.open(store, read_only=True) as opened:
            copied = pgvector.to_pgvector(opened, url, table, batch_size=batch_size, progress=not as_json)
        result |= _reported(copied, table, as_json)


@migrate_app.command("from-pgvector")
def from_pgvector(
    url: UrlArgument,
    table: TableArgument,
    store: StoreOption = STORE,
    embedder: EmbedderOption = None,
    batch_size: BatchOption = 256,
    as_json: JsonOption = False,
) -> None:
    """Copy a table, also one of langchain-postgres, into a store. A second run writes only what is new."""
    with reporting(as_json) as result:
        from memograft.passages import pgvector

        with _written(store, embedder, lambda named: pgvector.embedder_of(url, table, named)) as opened:
            copied = pgvector.from_pgvector(url, table, opened, batch_size=batch_size, progress=not as_json)
        result |= _reported(copied, str(store), as_json)


def _written(store: Path, name: str | None, checked: Callable[[Embedder | None], Embedder]) -> VectorStore:
    """Open a store for writing; a new one is created only after its embedder has been checked."""
    from memograft.passages.db import FILE_NAME
    from memograft.passages.embedders import embedder_named
    from memograft.passages.vector_store import VectorStore
    from memograft.storage.disk import is_there

    embedder = embedder_named(name) if name else None
    if embedder or not is_there(store / FILE_NAME):
        embedder = checked(embedder)
    return VectorStore(embedder, store, progress=False)


def _reported(copied: Copied, target: str, as_json: bool) -> dict[str, object]:
    if not as_json:
        there = copied.passages - copied.written
        said = f"{copied.passages} passages: {copied.written} written to {target}, {there} there already"
        out().print(said, markup=False, soft_wrap=True)
    return asdict(copied)
