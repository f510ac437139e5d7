"""Stores copied into PostgreSQL tables with pgvector and back; the same tables in langchain-postgres.

The tests start a PostgreSQL of their own: that of the package pgserver, which has wheels for Python 3.11 and 3.12, or
the system's. They are skipped where neither is installed with the extension pgvector.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from memograft import Document, LexicalEmbedder, VectorStore
from memograft.errors import EmbedderMismatchError, MissingExtraError, SettingsError, StoreError
from memograft.passages.embedders import GivenVectors
from memograft.passages.migration import Copied
from memograft.passages.pgvector import embedder_of, from_pgvector, to_pgvector
from test_cli import run_json
from test_qdrant import DOCUMENTS, langchain_embeddings

psycopg = pytest.importorskip("psycopg")
spec = importlib.util.find_spec("pgserver")  # for its files only
INSTALLED = [Path(place) / "pginstall" for place in (spec and spec.submodule_search_locations) or ()]
INSTALLED += sorted(Path("/usr/lib/postgresql").glob("*"), reverse=True)
WITH_PGVECTOR = [folder for folder in INSTALLED if list(folder.glob("lib/**/vector.so"))]
if not WITH_PGVECTOR:
    pytest.skip("no PostgreSQL with pgvector in the package pgserver or /usr/lib/postgresql", allow_module_level=True)
BIN = WITH_PGVECTOR[0] / "bin"
OTHER = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root


def program(*arguments: object) -> None:
    subprocess.run([str(a) for a in arguments], check=True, stdout=subprocess.DEVNULL, cwd="/", user=OTHER)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server in a new folder, which is reached by a socket in it."""
    folder = Path(tempfile.mkdtemp())  # not tmp_path, whose parents only their owner may enter
    if OTHER is not None:
        shutil.chown(folder, OTHER)
    data = folder / "data"
    try:
        program(BIN / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        program(BIN / "pg_ctl", "-D", data, "-l", folder / "log", "-o", options, "-w", "start")
        try:
            address = f"postgresql://postgres@/postgres?host={folder}"
            yield address
        finally:
            program(BIN / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def table(url: str) -> Iterator[str]:
    yield "pages"
    with psycopg.connect(url) as connection:
        connection.execute("DROP TABLE IF EXISTS pages")


@pytest.fixture
def store() -> VectorStore:
    store = VectorStore(LexicalEmbedder(64))
    store.add(DOCUMENTS)
    return store


def assert_same(one: VectorStore, other: VectorStore) -> None:
    ids = sorted(document.id for document in one)
    assert sorted(document.id for document in other) == ids
    assert other.get(ids) == one.get(ids)
    np.testing.assert_allclose(other.vectors(ids), one.vectors(ids), rtol=0, atol=1e-7)


@pytest.mark.parametrize("batch_size", [2, 256])
def test_a_round_trip_changes_nothing(store, url, table, batch_size):
    assert to_pgvector(store, url, table, batch_size=batch_size) == Copied(5, 5)
    back = VectorStore(embedder_of(url, table))
    assert back.embedder.fingerprint == store.embedder.fingerprint
    assert from_pgvector(url, f"public.{table}", back, batch_size=batch_size) == Copied(5, 5)
    assert_same(store, back)


def test_a_second_run_writes_only_what_changed(store, url, table):
    to_pgvector(store, url, table)
    assert to_pgvector(store, url, table) == Copied(5, 0)
    store.add([Document("Paris is in France.", "guides/paris.md#0"), Document("New.", "new")])
    assert to_pgvector(store, url, table, batch_size=2) == Copied(6, 2)
    back = VectorStore(LexicalEmbedder(64))
    assert from_pgvector(url, table, back) == Copied(6, 6)
    assert_same(store, back)
    assert from_pgvector(url, table, back) == Copied(6, 0)


def test_batches_before_an_error_stay(store, url, table):
    store.add([Document("A text with \0.", "z")])
    with pytest.raises(StoreError, match=r"PostgreSQL did not do as asked \(.*NUL.*\); check the URL"):
        to_pgvector(store, url, table, batch_size=1)
    store.delete(["z"])
    assert to_pgvector(store, url, table) == Copied(5, 0)


def with_langchain(url: str, table: str, embedder: LexicalEmbedder, work, *, new: bool = False):
    """The result of a coroutine `work(store)` with langchain-postgres's store on a table."""
    postgres = pytest.importorskip("langchain_postgres")
    from sqlalchemy.ext.asyncio import create_async_engine

    async def run():
        engine = postgres.PGEngine.from_engine(create_async_engine(url.replace("postgresql:", "postgresql+psycopg:")))
        try:
            if new:
                await engine.ainit_vectorstore_table(table, embedder.dimension)
            return await work(await postgres.PGVectorStore.create(engine, langchain_embeddings(embedder), table))
        finally:
            await engine.close()

    return asyncio.run(run())


@pytest.mark.parametrize("question", ["What is the capital of France?", "a citrus fruit", "首都"])
def test_langchain_finds_the_same_hits(store, url, table, question):
    store.delete(["only signs"])  # its vector is zeros, with which pgvector has no cosine
    to_pgvector(store, url, table)
    found = with_langchain(url, table, store.embedder, lambda s: s.asimilarity_search_with_score(question, k=3))
    ours = store.search(question, k=3)
    assert [(text.id, text.page_content, text.metadata) for text, _ in found] == [
        (hit.document.id, hit.document.text, hit.document.metadata) for hit in ours
    ]
    assert [1 - distance for _, distance in found] == pytest.approx([hit.score for hit in ours], abs=1e-5)


def test_a_table_of_langchain_becomes_a_store(url, table):
    embedder = LexicalEmbedder(64)
    texts, metadatas = [d.text for d in DOCUMENTS], [dict(d.metadata) for d in DOCUMENTS]
    ids = with_langchain(url, table, embedder, lambda s: s.aadd_texts(texts, metadatas=metadatas), new=True)
    with pytest.raises(SettingsError, match=r"the table 'pages' does not record the embedder"):
        embedder_of(url, table)
    store = VectorStore(embedder_of(url, table, embedder))
    assert from_pgvector(url, table, store, batch_size=2) == Copied(5, 5)
    assert store.get(ids) == [Document(d.text, id, d.metadata) for d, id in zip(DOCUMENTS, ids, strict=True)]
    assert to_pgvector(store, url, table) == Copied(5, 0)
    store.add([Document("Changed.", ids[0])])
    assert to_pgvector(store, url, table) == Copied(5, 1)
    with pytest.raises(SettingsError, match="'pages' have 64 numbers each, got an embedder with 128"):
        from_pgvector(url, table, VectorStore(LexicalEmbedder(128)))


def test_other_tables_are_refused(store, url, table):
    with pytest.raises(StoreError, match="there is no table 'pages' in the database; check the name"):
        from_pgvector(url, table, store)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE pages (id text); COMMENT ON TABLE pages IS 'mine'")
    with pytest.raises(SettingsError, match=r"must have the columns langchain_id, .*, got id; use another table"):
        to_pgvector(store, url, table)
    with psycopg.connect(url) as connection:
        connection.execute("DROP TABLE pages")
    to_pgvector(store, url, table)
    with pytest.raises(EmbedderMismatchError, match="of the embedder 'lexical-1-64', got 'given-64'; use that one"):
        to_pgvector(VectorStore(GivenVectors(64)), url, table)
    with pytest.raises(SettingsError, match="have 64 numbers each, got an embedder with 128"):
        to_pgvector(VectorStore(LexicalEmbedder(128)), url, table)
    with pytest.raises(SettingsError, match="only a store with vectors can be copied"):
        to_pgvector(VectorStore(), url, table)


def test_databases_that_cannot_be_used(store, monkeypatch):
    with pytest.raises(StoreError, match=r"(?s)PostgreSQL did not do as asked .*; check the URL, the user's rights"):
        to_pgvector(store, "postgresql://nobody@127.0.0.1:9/none", "pages")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r'run pip install "memograft\[pgvector\]"'):
        from_pgvector("postgresql://nobody@127.0.0.1:9/none", "pages", store)
    with pytest.raises(MissingExtraError, match="needs psycopg, which is not installed"):
        to_pgvector(store, "postgresql://nobody@127.0.0.1:9/none", "pages")


def test_the_command_copies_there_and_back(url, table, tmp_path):
    folder, back = tmp_path / "store", tmp_path / "back"
    with VectorStore(LexicalEmbedder(64), folder) as store:
        store.add(DOCUMENTS)
    assert run_json("migrate", "to-pgvector", url, table, "--store", folder) == {"passages": 5, "written": 5}
    assert run_json("migrate", "from-pgvector", url, table, "--store", back) == {"passages": 5, "written": 5}
    assert run_json("migrate", "from-pgvector", url, table, "--store", back) == {"passages": 5, "written": 0}
    with VectorStore.open(folder) as one, VectorStore.open(back) as other:
        assert_same(one, other)
