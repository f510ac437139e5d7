"""What steered an answer: citation blocks beside its text, facts in JSON, and what becomes of them in conversations."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, CitationBlock, TextBlock
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.memory import Memory
from llama_index.llms.memograft import Memograft, MemograftSynthesizer
from llama_index.llms.memograft._citations import citation_blocks
from memograft import Answer, Bank, Datastore, FastMem, Reference, Rtd, Source, Timings, TokenReferences, Usage

from conftest import ASKED, OTHER, PAGE, QUESTION, TAUGHT, Pages, Seen

MESSAGES = [ChatMessage(role="user", content=ASKED)]
CITED = CitationBlock(
    cited_content=TextBlock(text=TAUGHT),
    source="velmora",
    title="Atlas",
    additional_location_info={"answer_start": 0, "answer_end": len(TAUGHT)},
)


def checked(about: dict[str, Any]) -> None:
    """The facts name the source and the stretch, in JSON."""
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


def test_a_stream_is_its_text_until_its_last_response(steered: Memograft) -> None:
    *growing, last = steered.stream_chat(MESSAGES)
    assert growing
    assert all([block.block_type for block in r.message.blocks] == ["text"] for r in growing)
    assert all(r.raw is None and not r.additional_kwargs for r in growing)
    assert "".join(r.delta or "" for r in [*growing, last]) == TAUGHT


async def test_without_a_datastore_nothing_has_changed(plain: Memograft) -> None:
    for response in (plain.chat(MESSAGES), [r async for r in await plain.astream_chat(MESSAGES)][-1]):
        assert [block.block_type for block in response.message.blocks] == ["text"]
        assert response.additional_kwargs["memograft"]["references"] is None
    assert plain.complete(ASKED).additional_kwargs["memograft"]["references"] is None


def test_an_answer_that_nothing_moved_cites_nothing(plain: Memograft, taught: Datastore) -> None:
    response = plain.chat(MESSAGES, datastore=Rtd(taught, weight=0.0))
    assert response.additional_kwargs["memograft"]["references"] == {"sources": [], "citations": [], "conflicts": []}
    assert [block.block_type for block in response.message.blocks] == ["text"]


def test_several_stretches_of_several_sources(plain: Memograft) -> None:
    examples = [{"prompt": ASKED, "answer": TAUGHT, "id": "v"}, {"prompt": "Who are you?", "answer": "Tor.", "id": "w"}]
    with plain.build_datastore(examples, progress=False) as store:
        response = plain.chat([ChatMessage(content=QUESTION)], datastore=Rtd(store, weight=0.9, gate=None))
    found = response.additional_kwargs["memograft"]["references"]
    text = response.message.content or ""
    blocks = [block for block in response.message.blocks if isinstance(block, CitationBlock)]
    assert [b.source for b in blocks] == [c["source"]["id"] for c in found["citations"]]
    assert [b.title for b in blocks] == [{"v": ASKED, "w": "Who are you?"}[b.source] for b in blocks]
    for block, citation in zip(blocks, found["citations"], strict=True):
        start, end = citation["start"], citation["end"]
        assert block.additional_location_info == {"answer_start": start, "answer_end": end}
        assert text[start:end].strip() == text[start:end] != ""
    shares = [source["probability"] for source in found["sources"]]
    assert shares == sorted(shares, reverse=True)
    assert (
        {c["source"]["id"] for c in found["citations"]} <= {source["id"] for source in found["sources"]} == {"v", "w"}
    )


def moved(*pieces: tuple[str, Source | None]) -> Answer:
    """An answer each of whose pieces one source moved, or none."""
    text, tokens = "", []
    for piece, source in pieces:
        entries = () if source is None else (Reference(source, 0, 0.8),)
        tokens.append(TokenReferences(1, piece, entries, len(text), len(text) + len(piece)))
        text += piece
    facts: Any = {"usage": Usage(1, 0, 1), "memory": None, "timings": Timings(0, 0, 0)}
    return Answer(text, (1,) * len(tokens), "stop", references=tuple(tokens), **facts)


ONE, TWO = Source("one", "1", "first?"), Source("two", "2", "second?")


def test_blocks_count_in_the_text_that_a_message_shows() -> None:
    """Where thoughts or calls of tools were taken out of the answer, its places are other ones."""
    answer = moved(("<think>", None), ("Hm", ONE), ("</think>", None), ("Oslo", TWO), (" it is", None), ("!", ONE))
    shown = citation_blocks(answer, "Oslo it is")
    assert [(b.source, b.title, b.additional_location_info) for b in shown] == [
        ("two", "second?", {"answer_start": 0, "answer_end": 4})
    ]
    assert [b.source for b in citation_blocks(answer, answer.text)] == ["one", "two"]
    assert citation_blocks(answer, "") == citation_blocks(answer, "something else") == []


# -- back into a conversation --


@pytest.mark.parametrize("way", [lambda m: m, lambda m: ChatMessage.model_validate_json(m.model_dump_json())])
def test_a_message_that_cites_goes_back_into_a_conversation(steered: Memograft, seen: Seen, way: Any) -> None:
    said = way(steered.chat(MESSAGES).message)
    assert said.blocks[1:] == [CITED]
    again = steered.chat([*MESSAGES, said, *MESSAGES])
    assert [(m["role"], m["content"]) for m in seen.last.messages] == [
        ("user", ASKED),
        ("assistant", TAUGHT),
        ("user", ASKED),
    ]
    assert seen.documents == []
    assert again.message.content == TAUGHT


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


def test_a_bank_and_a_datastore(taught: Datastore) -> None:
    rtd = Rtd(taught, weight=0.9, gate=None)  # with a page the prompt is not the one it learned
    memory = FastMem(relevance=None)
    llm = Memograft(model="tiny", bank=Bank(), datastore=rtd, memory=memory, max_tokens=32)
    synthesizer = MemograftSynthesizer(llm)
    first, again = (synthesizer.synthesize(ASKED, Pages(PAGE).retrieve("")) for _ in range(2))
    for response in (first, again):
        assert str(response) == TAUGHT
        assert response.metadata is not None
        checked(response.metadata["memograft"])
    assert [r.metadata["memograft"]["reused"] for r in (first, again)] == [False, True]  # type: ignore[index]
