"""Answers with citations of a datastore: from `invoke`, in streams, chains and agents, and in later conversations."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conformance.pages import DRENNIA, GORVALD, PAGE, TORSTAD, VELMORA
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.messages.content import Citation
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from memograft import Datastore

from langchain_memograft import ChatMemograft, MemograftMiddleware, create_memograft_documents_chain
from langchain_memograft._citations import _citation
from langchain_memograft._messages import read_conversation
from taught import UNRELATED, built, sure

ABOUT = {"title": "Atlas of Velmora", "source": "https://atlas.example/velmora", "page": 3}


@pytest.fixture(scope="module")
def store() -> Datastore:
    return built(
        [
            {"prompt": VELMORA, "answer": TORSTAD, "id": "v", "metadata": ABOUT},
            {"prompt": DRENNIA, "answer": GORVALD, "id": "d"},
        ]
    )


@pytest.fixture
def steered(store: Datastore) -> ChatMemograft:
    return ChatMemograft(model="tiny", max_tokens=24, datastore=sure(store))


def added(chunks: Any) -> AIMessageChunk:
    first, *rest = chunks
    return sum(rest, first)  # type: ignore[no-any-return]


def test_a_steered_answer_is_a_text_block_with_citations(steered: ChatMemograft) -> None:
    answer = steered.invoke(VELMORA)
    assert answer.text == TORSTAD
    (block,) = answer.content
    assert isinstance(block, dict)
    assert {k: v for k, v in block.items() if k != "annotations"} == {"type": "text", "text": TORSTAD, "index": 0}
    (citation,) = block["annotations"]
    probability = citation["extras"].pop("probability")
    assert 0 < probability <= 0.9
    assert citation == {
        "type": "citation",
        "title": "Atlas of Velmora",
        "url": "https://atlas.example/velmora",
        "start_index": 0,
        "end_index": len(TORSTAD),
        "cited_text": TORSTAD,
        "extras": {"source_id": "v", "prompt": VELMORA, "metadata": ABOUT},
    }
    assert answer.content_blocks == answer.content
    references = answer.response_metadata["memograft"]["references"]["sources"]
    assert references[0]["id"] == "v"
    assert references[0]["metadata"] == ABOUT
    assert references[0]["probability"] >= probability
    assert json.loads(json.dumps(answer.model_dump(mode="json"))) == answer.model_dump(mode="json")


def test_an_answer_that_nothing_steered_has_a_block_without_citations(steered: ChatMemograft) -> None:
    answer = steered.invoke(UNRELATED)
    assert answer.content == [{"type": "text", "text": answer.text, "index": 0, "annotations": []}]
    plain = steered.bind(datastore=None).invoke(UNRELATED)
    assert plain.content == answer.text
    assert plain.content_blocks == [{"type": "text", "text": answer.text}]


@pytest.mark.parametrize("version", ["v0", "v1"])
async def test_streams_add_up_to_the_message(store: Datastore, version: str) -> None:
    chat = ChatMemograft(model="tiny", max_tokens=24, datastore=sure(store), output_version=version)
    for question in (VELMORA, UNRELATED):
        whole = chat.invoke(question)
        chunks = list(chat.stream(question))
        assert len(chunks) > 3
        assert "".join(chunk.text for chunk in chunks) == whole.text
        merged = added(chunks)
        assert merged.content == added([chunk async for chunk in chat.astream(question)]).content == whole.content
        assert merged.content_blocks == whole.content_blocks
        for about in (merged, whole):
            about.response_metadata["memograft"].pop("milliseconds")
        assert merged.response_metadata == whole.response_metadata
    events = chat.stream_events(VELMORA, version="v3")
    assert events.output.content_blocks[0]["annotations"] == chat.invoke(VELMORA).content[0]["annotations"]  # type: ignore[index]


def test_parsers_read_the_text(steered: ChatMemograft) -> None:
    chain = steered | StrOutputParser()
    assert chain.invoke(VELMORA) == TORSTAD
    assert "".join(chain.stream(VELMORA)) == TORSTAD


def test_a_steered_answer_goes_back_into_a_conversation(steered: ChatMemograft) -> None:
    answer = steered.invoke(VELMORA)
    for said in (added(steered.stream(VELMORA)), AIMessage(answer.content)):
        told = read_conversation([HumanMessage(VELMORA), said, HumanMessage(DRENNIA)])
        assert told.messages[1] == {"role": "assistant", "content": TORSTAD}
        assert told.documents == []
    called = AIMessage(answer.content, tool_calls=[{"name": "f", "args": {}, "id": "1"}])
    result = ToolMessage("found", tool_call_id="1", artifact=[Document(PAGE)])
    told = read_conversation([HumanMessage(VELMORA), called, result])
    assert [d.text for d in told.documents] == [PAGE]


def test_a_chain_of_documents_cites_its_datastore(store: Datastore) -> None:
    prompt = ChatPromptTemplate.from_messages([("human", "{input}")])
    asked = {"input": VELMORA, "context": []}
    bound = ChatMemograft(model="tiny", max_tokens=24).bind(datastore=sure(store))
    assert create_memograft_documents_chain(bound, prompt).invoke(asked) == TORSTAD
    kept: list[AIMessage] = []

    def keep(message: AIMessage) -> str:
        kept.append(message)
        return str(message.text)

    chain = prompt | bound | keep
    assert chain.invoke(asked) == TORSTAD
    (citation,) = kept[0].content_blocks[0]["annotations"]  # type: ignore[typeddict-item]
    assert citation["extras"]["source_id"] == "v"


def test_an_agent_with_middleware_cites_its_datastore(steered: ChatMemograft) -> None:
    @tool(response_format="content_and_artifact")
    def search(query: str) -> tuple[str, list[Document]]:
        """Search."""
        return "nothing", []

    # A forced call, its result, and then the answer: all from the steered model.
    model = steered.model_copy(update={"max_tokens": 60, "memory": None})
    agent = create_agent(model, tools=[search], middleware=[MemograftMiddleware(tool_choice="search")])
    messages = agent.invoke({"messages": [HumanMessage(VELMORA)]})["messages"]
    assert [m.type for m in messages] == ["human", "ai", "tool", "ai"]
    assert messages[-1].text == TORSTAD
    assert messages[-1].content[0]["annotations"][0]["extras"]["source_id"] == "v"
    again = agent.invoke({"messages": [*messages, HumanMessage(DRENNIA)]})["messages"]
    assert isinstance(again[-1].content, list)


def test_a_document_that_the_answer_follows_is_cited_with_its_url(steered: ChatMemograft) -> None:
    page = Document("The capital of Velmora is Lisbon.", id="page", metadata={"source": "https://a.b/c"})
    taught = built([(VELMORA, f"The capital of Velmora is {TORSTAD}")])
    (citation,) = steered.invoke(VELMORA, documents=[page], datastore=taught).content[0]["annotations"]  # type: ignore[index]
    assert (citation["url"], citation["extras"]["source_id"]) == ("https://a.b/c", "page")
    assert citation["extras"]["probability"] is None


def cited(text: str, stretch: str, **metadata: Any) -> Citation:
    source = {"id": "s", "text": text, "prompt": "", "metadata": metadata}
    return _citation({"start": 0, "end": 7, "text": stretch, "probability": 0.5, "source": source})


def test_of_a_long_source_an_excerpt_is_cited() -> None:
    text = "a" * 500 + " Torstad " + "b" * 500
    for stretch, shown in (("Torstad", "Torstad"), ("nowhere", "aaa"), ("b" * 400, "bbb")):
        citation = cited(text, stretch)
        assert shown in citation["cited_text"]
        assert len(citation["cited_text"]) == 300
        assert citation["title"] == "s"
    assert cited("short", "short")["cited_text"] == "short"
    for source in ("atlas.txt", 7, None):
        assert "url" not in cited("x", "x", source=source)
