"""`MemograftSynthesizer`: each node is a document, and the response has a report on them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.base.response.schema import AsyncStreamingResponse, PydanticResponse, Response, StreamingResponse
from llama_index.core.llms.mock import MockLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.llms.memograft import Memograft, MemograftSynthesizer
from memograft import FastMem
from memograft.memory.fastmem.relevance import AUTO
from pydantic import BaseModel

from conftest import MEMORIZED, OTHER, PAGE, PLAIN, QUESTION, Pages, Seen

NODES = Pages(OTHER, PAGE).retrieve(QUESTION)


class Small(BaseModel):
    a: bool


def test_nodes_stay_nodes(llm: Memograft, seen: Seen) -> None:
    response = MemograftSynthesizer(llm).synthesize(QUESTION, NODES)
    assert isinstance(response, Response)
    assert response.response == MEMORIZED
    assert [d.id for d in seen.last.documents] == ["page-1", "page-2"]
    assert seen.documents == [OTHER, PAGE]
    assert [m["content"] for m in seen.last.messages] == [QUESTION]
    assert response.source_nodes == NODES
    assert response.metadata is not None
    assert set(response.metadata) == {"page-1", "page-2", "memograft"}
    about = response.metadata["memograft"]
    assert (about["documents"], about["memorized"], about["left_out"]) == (["page-1", "page-2"], ["page-2"], ["page-1"])
    assert about["relevance"][0] < AUTO < about["relevance"][1]
    assert (about["disagree"], about["rolled_back"]) == ([], False)


async def test_all_ways_say_the_same(llm: Memograft) -> None:
    synthesizer, streaming = MemograftSynthesizer(llm), MemograftSynthesizer(llm, streaming=True)
    assert str(await synthesizer.asynthesize(QUESTION, NODES)) == MEMORIZED
    streamed = streaming.synthesize(QUESTION, NODES)
    assert isinstance(streamed, StreamingResponse)
    assert streamed.metadata is not None
    assert streamed.metadata["memograft"] == {}
    assert "".join(streamed.response_gen) == MEMORIZED
    assert streamed.metadata["memograft"]["memorized"] == ["page-2"]
    astreamed = await streaming.asynthesize(QUESTION, NODES)
    assert isinstance(astreamed, AsyncStreamingResponse)
    assert "".join([token async for token in astreamed.async_response_gen()]) == MEMORIZED
    assert astreamed.metadata is not None
    assert astreamed.metadata["memograft"]["memorized"] == ["page-2"]


async def test_in_a_query_engine(llm: Memograft) -> None:
    engine = RetrieverQueryEngine(Pages(OTHER, PAGE), response_synthesizer=MemograftSynthesizer(llm))
    for response in (engine.query(QUESTION), await engine.aquery(QUESTION)):
        assert str(response) == MEMORIZED
        assert [node.node.node_id for node in response.source_nodes] == ["page-1", "page-2"]


async def test_concurrent_questions_do_not_meet(llm: Memograft) -> None:
    synthesizer = MemograftSynthesizer(llm)
    pages = [Pages(PAGE).retrieve(""), Pages(OTHER).retrieve("")] * 3
    responses = await asyncio.gather(*(synthesizer.asynthesize(QUESTION, nodes) for nodes in pages))
    assert [str(r) for r in responses] == [MEMORIZED, PLAIN] * 3
    memorized = [r.metadata["memograft"]["memorized"] for r in responses]  # type: ignore[index]
    assert memorized == [["page-1"], []] * 3


def test_nodes_that_do_not_fit(llm: Memograft) -> None:
    nodes = Pages(PAGE, " ".join([OTHER] * 60)).retrieve("")
    with pytest.raises(ValueError, match='overflow="drop" or "truncate"'):
        MemograftSynthesizer(llm).synthesize(QUESTION, nodes)
    dropping = llm.model_copy(update={"overflow": "drop"})
    response = MemograftSynthesizer(dropping).synthesize(QUESTION, nodes)
    assert str(response) == MEMORIZED
    assert response.metadata is not None
    assert response.metadata["memograft"]["dropped"] == ["page-2"]


def test_a_template(llm: Memograft, seen: Seen) -> None:
    template = PromptTemplate("By {context_str} and in {tone}: {query_str}")
    synthesizer = MemograftSynthesizer(llm, text_qa_template=template)
    synthesizer.synthesize(QUESTION, NODES, tone="short")
    assert [m["content"] for m in seen.last.messages] == [f"By (the documents) and in short: {QUESTION}"]
    assert seen.documents == [OTHER, PAGE]
    assert list(synthesizer.get_prompts()) == ["text_qa_template"]
    synthesizer.update_prompts({"text_qa_template": PromptTemplate("{query_str}!")})
    synthesizer.synthesize(QUESTION, NODES)
    assert [m["content"] for m in seen.last.messages] == [f"{QUESTION}!"]
    assert MemograftSynthesizer(llm).get_prompts() == {}


def test_objects(llm: Memograft) -> None:
    llm = llm.model_copy(update={"max_tokens": 40})
    for synthesizer in (
        MemograftSynthesizer(llm, output_cls=Small),
        MemograftSynthesizer(llm.as_structured_llm(Small)),
    ):
        response = synthesizer.synthesize(QUESTION, NODES)
        assert isinstance(response, PydanticResponse)
        assert isinstance(response.response, Small)


async def test_texts_without_nodes(llm: Memograft) -> None:
    synthesizer = MemograftSynthesizer(llm)
    assert synthesizer.get_response(QUESTION, [OTHER, PAGE]) == MEMORIZED
    assert await synthesizer.aget_response(QUESTION, [OTHER, PAGE]) == MEMORIZED


async def test_no_nodes(llm: Memograft, seen: Seen) -> None:
    synthesizer = MemograftSynthesizer(llm, empty_response="Nothing found.")
    assert str(synthesizer.synthesize(QUESTION, [])) == "Nothing found."
    assert str(await synthesizer.asynthesize(QUESTION, [])) == "Nothing found."
    assert seen.batches == []


def test_settings_llm(llm: Memograft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "_llm", llm)
    assert str(MemograftSynthesizer().synthesize(QUESTION, NODES)) == MEMORIZED


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"llm": MockLLM()}, r"`llm` must be a Memograft, got MockLLM; pass llm=Memograft\(...\), or set Settings.llm"),
        ({"streaming": True, "output_cls": Small}, "`streaming` and `output_cls` exclude each other"),
        ({"output_cls": "Small"}, "`output_cls` must be a pydantic class, got 'Small'"),
    ],
)
def test_arguments_at_odds(llm: Memograft, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        MemograftSynthesizer(**{"llm": llm, **options})


def test_making_one_loads_nothing() -> None:
    llm = Memograft(model="no such model", memory=FastMem())
    MemograftSynthesizer(llm)
    assert llm._engine is None
