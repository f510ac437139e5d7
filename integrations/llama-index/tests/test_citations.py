"""Answers with a datastore: citation blocks, the report as JSON, and such messages in later conversations."""

from __future__ import annotations

import json
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, CitationBlock, TextBlock
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.memory import Memory
from llama_index.llms.memograft import Memograft, MemograftSynthesizer

from conftest import ASKED, OTHER, PAGE, TAUGHT, Pages, Seen

MESSAGES = [ChatMessage(role="user", content=ASKED)]
CITED = CitationBlock(
    cited_content=TextBlock(text=TAUGHT),
    source="velmora",
    title="Atlas",
    additional_location_info={"answer_start": 0, "answer_end": len(TAUGHT)},
)


def checked(about: dict[str, Any]) -> None:
    """The report has the source and the cited part, as JSON."""
    given = json.loads(json.dumps(about["references"], allow_nan=False))
    metadata = {"title": "Atlas", "page": 3}
    (source,), (citation,) = given["sources"], given["citations"]
    assert 0.5 < citation.pop("probability") <= 0.9 < source.pop("probability")
    assert source == {"id": "velmora", "prompt": ASKED, "text": TAUGHT, "metadata": metadata}
    assert citation == {"start": 0, "end": 8, "text": TAUGHT, "source": source}


async def test_messages_cite(steered: Memograft) -> None:
    last_of_stream = list(steered.stream_chat(MESSAGES))[-1]
    last_of_astream = [r async for r in await steered.astream_chat(MESSAGES)][-1]
    for response in (steered.chat(MESSAGES), await steered.achat(MESSAGES), last_of_stream, last_of_astream):
        assert response.message.content == TAUGHT
        assert response.message.blocks == [TextBlock(text=TAUGHT), CITED]
        checked(response.additional_kwargs["memograft"])
        assert response.raw["memograft"] == response.additional_kwargs["memograft"]


async def test_completions_cite(steered: Memograft) -> None:
    last_of_stream = list(steered.stream_complete(ASKED))[-1]
    last_of_astream = [r async for r in await steered.astream_complete(ASKED)][-1]
    for response in (steered.complete(ASKED), await steered.acomplete(ASKED), last_of_stream, last_of_astream):
        assert response.text == TAUGHT
        checked(response.additional_kwargs["memograft"])
        assert response.raw is not None
        checked(response.raw["memograft"])


# -- back into a conversation --


def test_a_message_that_was_serialized_goes_back_into_a_conversation(steered: Memograft, seen: Seen) -> None:
    said = ChatMessage.model_validate_json(steered.chat(MESSAGES).message.model_dump_json())
    assert said.blocks[1:] == [CITED]
    assert steered.chat([*MESSAGES, said, *MESSAGES]).message.content == TAUGHT
    assert seen.documents == []


async def test_the_memory_of_a_chat_engine(steered: Memograft, seen: Seen) -> None:
    chat = SimpleChatEngine.from_defaults(llm=steered, memory=Memory.from_defaults(session_id="s", token_limit=4000))
    assert str(chat.chat(ASKED)) == TAUGHT
    assert chat.chat_history[-1].blocks == [TextBlock(text=TAUGHT), CITED]
    assert str(await chat.achat(ASKED)) == TAUGHT
    assert [m["content"] for m in seen.last.messages] == [ASKED, TAUGHT, ASKED]
    assert seen.documents == []


def test_citations_of_others_are_documents_as_they_were(plain: Memograft, seen: Seen) -> None:
    theirs = CitationBlock(
        cited_content=TextBlock(text=PAGE), source="p", title="", additional_location_info={"page": 1}
    )
    said = ChatMessage(role="assistant", blocks=[TextBlock(text="Hello."), theirs, CITED])
    plain.chat([ChatMessage(content="Hi."), said, *MESSAGES])
    assert seen.documents == [PAGE]


# -- MemograftSynthesizer --


async def test_responses_of_the_synthesizer_cite(steered: Memograft) -> None:
    nodes = Pages(OTHER).retrieve("")
    nodes[0].node.metadata = {"file": "a.txt"}
    synthesizer, streaming = MemograftSynthesizer(steered), MemograftSynthesizer(steered, streaming=True)
    streamed: Any = streaming.synthesize(ASKED, nodes)
    astreamed: Any = await streaming.asynthesize(ASKED, nodes)
    assert "references" not in streamed.metadata["memograft"]
    assert "".join(streamed.response_gen) == "".join([t async for t in astreamed.async_response_gen()]) == TAUGHT
    for response in (
        synthesizer.synthesize(ASKED, nodes),
        await synthesizer.asynthesize(ASKED, nodes),
        streamed,
        astreamed,
    ):
        assert response.metadata is not None
        assert set(response.metadata) == {"page-1", "memograft"}
        assert response.metadata["page-1"] == {"file": "a.txt"}
        checked(response.metadata["memograft"])
