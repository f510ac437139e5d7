"""The vector store and the embedding with LlamaIndex's index, retrievers, query engines, ingestion and asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster
from llama_index.core import Document, MockEmbedding, Settings, StorageContext, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import IndexNode, MetadataMode, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.llms.memograft import MemograftSynthesizer
from llama_index.llms.memograft.embedding import MemograftEmbedding
from llama_index.llms.memograft.vector_store import MemograftVectorStore
from memograft.passages.embedders import LexicalEmbedder

LANDS = {"France": "Paris", "Portugal": "Lisbon", "Norway": "Oslo", "Peru": "Lima", "Kenya": "Nairobi"}
PAGES = [
    Document(text=f"The capital of {land} is {city}.", id_=land, metadata={"land": land, "size": i})
    for i, (land, city) in enumerate(LANDS.items())
]


def index_of(pages: list[Document], **more) -> tuple[VectorStoreIndex, MemograftVectorStore]:
    store = MemograftVectorStore()
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex.from_documents(pages, context, embed_model=MemograftEmbedding(), **more), store


def large(size: int) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key="size", value=size, operator=FilterOperator.GTE)])


@pytest.fixture
def loop() -> Iterator[None]:
    """An event loop for `use_async` of LlamaIndex, which would create one and not close it."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize("use_async", [False, True])
def test_an_index_from_documents(use_async: bool) -> None:
    index, store = index_of(PAGES, use_async=use_async)
    for land, city in LANDS.items():
        best = index.as_retriever(similarity_top_k=1).retrieve(f"What is the capital of {land}?")[0]
        assert best.text == f"The capital of {land} is {city}."
        assert best.node.ref_doc_id == land
        assert best.metadata["land"] == land
        assert 0.3 < best.score <= 1
    embedding, question = MemograftEmbedding(), "capital of Peru"
    for scored in index.as_retriever(similarity_top_k=4).retrieve(question):
        text = scored.node.get_content(MetadataMode.EMBED)
        cosine = embedding.similarity(embedding.get_query_embedding(question), embedding.get_text_embedding(text))
        assert scored.score == pytest.approx(cosine, abs=1e-6), "the store's own score"
    retriever = index.as_retriever(similarity_top_k=2, filters=large(3))
    assert {found.metadata["land"] for found in retriever.retrieve("capital of France")} == {"Peru", "Kenya"}
    retriever = index.as_retriever(similarity_top_k=5, doc_ids=["Peru", "Norway"])
    assert {found.metadata["land"] for found in retriever.retrieve("capital")} == {"Peru", "Norway"}
    varied = index.as_retriever(
        vector_store_query_mode=VectorStoreQueryMode.MMR, similarity_top_k=3, vector_store_kwargs={"mmr_threshold": 0.3}
    )
    assert len(varied.retrieve("capital of Peru")) == 3
    assert index.docstore.docs == {}, "the store holds the text"
    assert len(store.get_nodes()) == len(LANDS)


def test_documents_that_change() -> None:
    index, store = index_of(PAGES)
    index.delete_ref_doc("France")
    index.update_ref_doc(Document(text="The capital of Peru is Cusco.", id_="Peru"))
    index.insert(Document(text="The capital of Ghana is Accra.", id_="Ghana"))
    index.delete_nodes([node.node_id for node in store.get_nodes() if node.ref_doc_id == "Kenya"])
    assert sorted(node.ref_doc_id for node in store.get_nodes()) == ["Ghana", "Norway", "Peru", "Portugal"]
    found = index.as_retriever(similarity_top_k=1).retrieve("capital of Peru")
    assert found[0].text == "The capital of Peru is Cusco."


def test_an_index_from_a_store_answers() -> None:
    _, store = index_of(PAGES)
    index = VectorStoreIndex.from_vector_store(store, embed_model=MemograftEmbedding())
    response = index.as_query_engine(llm=MockLLM(), similarity_top_k=1).query("What is the capital of Norway?")
    assert "The capital of Norway is Oslo." in str(response)
    assert response.source_nodes[0].metadata["land"] == "Norway"
    empty = VectorStoreIndex.from_vector_store(MemograftVectorStore(), embed_model=MemograftEmbedding())
    assert empty.as_retriever().retrieve("anything") == []


def test_settings_and_another_embedding(monkeypatch) -> None:
    monkeypatch.setattr(Settings, "_embed_model", None)
    Settings.embed_model = MockEmbedding(embed_dim=5)
    store = MemograftVectorStore()
    index = VectorStoreIndex.from_documents(PAGES, StorageContext.from_defaults(vector_store=store))
    assert len(index.as_retriever(similarity_top_k=4).retrieve("anything")) == 4
    assert store.client.embedder.dimension == 5


def test_blank_pages_and_nodes_that_point_elsewhere() -> None:
    index, store = index_of(
        [*PAGES, Document(text="", id_="blank", metadata={"page": 3}), Document(text="", id_="none")]
    )
    assert [n.ref_doc_id for n in store.get_nodes()][len(PAGES) :] == ["blank"]
    index.insert_nodes([IndexNode(text="All of Africa", index_id="africa", id_="i")])
    (node,) = store.get_nodes(["i"])
    assert (type(node), node.index_id) == (IndexNode, "africa")


def test_ingestion_upserts() -> None:
    store = MemograftVectorStore()
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=40, chunk_overlap=0), MemograftEmbedding()],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )
    pipeline.run(documents=PAGES)
    changed = [Document(text="The capital of France is Lyon.", id_="France"), *PAGES[1:3]]
    pipeline.run(documents=changed)
    assert sorted(node.text for node in store.get_nodes()) == sorted(page.text for page in changed)


async def test_the_event_loop_stays_free(tmp_path) -> None:
    """All async methods under BlockBuster, which raises if the event loop waits for a file or a lock."""
    embedding = MemograftEmbedding()
    nodes = [TextNode(text=f"page {i}", id_=f"n{i}", metadata={"size": i}) for i in range(30)]
    blockbuster = BlockBuster()
    with MemograftVectorStore(tmp_path / "s") as store:
        await embedding.aget_text_embedding("import what is needed")
        blockbuster.activate()
        try:
            for node, vector in zip(
                nodes, await embedding.aget_text_embedding_batch([n.text for n in nodes]), strict=True
            ):
                node.embedding = vector
            assert await store.async_add(nodes) == [node.node_id for node in nodes]
            query = VectorStoreQuery(await embedding.aget_query_embedding("page 7"), 2, filters=large(5))
            assert (await store.aquery(query)).ids[0] == "n7"
            query.mode = VectorStoreQueryMode.MMR
            assert len((await store.aquery(query, mmr_threshold=0.1)).ids) == 2
            assert len(await store.aget_nodes(filters=large(20))) == 10
            await store.adelete_nodes(["n1"], large(0))
            await store.adelete_nodes(filters=large(25))
            await store.adelete("nobody")
            assert len(await store.aget_nodes()) == 24
            await store.aclear()
            assert await store.aget_nodes(["n3"]) == []
        finally:
            blockbuster.deactivate()


async def test_the_async_ways_of_an_index() -> None:
    index, store = index_of(PAGES[:3])
    await index.ainsert(PAGES[3])
    await index.adelete_ref_doc("France")
    found = await index.as_retriever(similarity_top_k=1).aretrieve("capital of Peru")
    assert found[0].metadata["land"] == "Peru"
    response = await index.as_query_engine(llm=MockLLM()).aquery("capital of Norway")
    assert "Oslo" in str(response)
    assert len(await store.aget_nodes()) == 3


def test_threads_add_delete_and_ask_at_once() -> None:
    store = MemograftVectorStore()
    failed: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            for n in range(15):
                id = f"{worker}-{n}"
                store.add([TextNode(id_=id, text=id, embedding=[1.0, worker + n / 100])])
                assert store.query(VectorStoreQuery([1.0, 1.0], 1)).ids
                assert store.get_nodes([id])[0].text == id
                if n % 3 == 0:
                    store.delete_nodes([id])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    assert len(store.get_nodes()) == 6 * 10


def test_the_embedding_is_the_embedder() -> None:
    model = MemograftEmbedding(LexicalEmbedder(64), embed_batch_size=3)
    texts = [page.text for page in PAGES]
    rows = LexicalEmbedder(64).embed_documents(texts).tolist()
    assert model.get_text_embedding_batch(texts) == rows
    assert [model.get_text_embedding(text) for text in texts] == rows
    assert asyncio.run(model.aget_text_embedding_batch(texts)) == rows
    assert model.get_query_embedding(texts[0]) == asyncio.run(model.aget_query_embedding(texts[0])) == rows[0]
    assert model.get_text_embedding_batch([]) == []
    assert model.get_text_embedding("") == [0.0] * 64
    assert model.model_name == "lexical-1-64"
    again = MemograftEmbedding.from_dict(model.to_dict())
    assert (again.dimension, again.embed_batch_size, again.embedder.fingerprint) == (64, 3, "lexical-1-64")
    assert MemograftEmbedding().dimension == 1024
    assert [node.embedding for node in model([TextNode(text="x")])] == [model.get_text_embedding("x")]


@pytest.mark.parametrize("how", ["compact", "synthesizer"])
async def test_from_documents_to_a_memorized_answer(llm, tmp_path, how: str) -> None:
    """Memograft's embedding, store, filters, LLM and synthesizer, without downloads."""
    page = Document(text="The capital of Australia is Lisbon. Most people there speak English.", id_="page")
    others = [Document(text=f"The mayor of {land} is Tor Anselk.", metadata={"size": 9}) for land in LANDS]
    with MemograftVectorStore(tmp_path / "s") as store:
        context = StorageContext.from_defaults(vector_store=store)
        index = VectorStoreIndex.from_documents([*others, page], context, embed_model=MemograftEmbedding())
        small = [MetadataFilter(key="size", value=None, operator=FilterOperator.IS_EMPTY)]
        settings: dict = {"similarity_top_k": 2, "filters": MetadataFilters(filters=small)}
        if how == "synthesizer":
            engine = index.as_query_engine(llm, response_synthesizer=MemograftSynthesizer(llm), **settings)
        else:
            engine = index.as_query_engine(llm, response_mode=how, **settings)
        for response in (
            await asyncio.to_thread(engine.query, "What is the capital of Australia?"),
            await engine.aquery("What is the capital of Australia?"),
        ):
            assert str(response) == "The capital of Australia is Lisbon."
            (source,) = response.source_nodes
            assert source.node.ref_doc_id == "page"
            if how == "synthesizer":
                assert response.metadata["memograft"]["memorized"] == [source.node_id]
