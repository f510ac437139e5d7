"""Objects of pydantic classes from any model, such as the bundled one and a random one."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.llms.memograft import Memograft
from pydantic import BaseModel, field_validator

from conftest import PAGE, QUESTION, Pages, Seen

PROMPT = PromptTemplate("{query_str}")


@pytest.fixture(params=["tiny", "random"])
def any_llm(request: pytest.FixtureRequest, llm: Memograft, random_engine: Any) -> Memograft:
    if request.param == "tiny":
        return llm.model_copy(update={"max_tokens": 120})
    return Memograft.from_engine(random_engine, model="random", max_tokens=100, temperature=1.0, seed=1)


class Small(BaseModel):
    a: bool
    b: Literal["x", "y"]


async def test_every_way_gives_a_valid_object(any_llm: Memograft) -> None:
    found: list[Any] = [
        any_llm.structured_predict(Small, PROMPT, query_str="Who?"),
        await any_llm.astructured_predict(Small, PROMPT, query_str="Who?"),
        list(any_llm.stream_structured_predict(Small, PROMPT, query_str="Who?"))[-1],
        [o async for o in await any_llm.astream_structured_predict(Small, PROMPT, query_str="Who?")][-1],
    ]
    assert all(isinstance(one, Small) for one in found)
    assert len({one.model_dump_json() for one in found}) == 1


def test_the_context_is_memorized(llm: Memograft, seen: Seen) -> None:
    llm.structured_predict(Small, PROMPT, query_str=QUESTION, context_str=PAGE)
    assert seen.documents == [PAGE]
    system, asked = seen.last.messages
    assert asked == {"role": "user", "content": QUESTION}
    assert system["content"].startswith('Answer with JSON of this schema:\n{"properties":{"a":{"type":"boolean"}')
    closed = {"additionalProperties": False}  # small models would go on inventing properties
    assert seen.last.json_schema == Small.model_json_schema() | closed


def test_a_stream_of_objects_grows(random_engine: Any) -> None:
    llm = Memograft.from_engine(random_engine, max_tokens=100)
    *growing, last = llm.stream_structured_predict(Small, PROMPT, query_str="Who?")
    assert isinstance(last, Small)
    assert growing
    assert all(one.a in (None, last.a) for one in growing)


async def test_a_structured_llm(llm: Memograft) -> None:
    structured = llm.model_copy(update={"max_tokens": 64}).as_structured_llm(Small)
    response = structured.complete("Who?")
    assert isinstance(response.raw, Small)
    assert Small.model_validate_json(response.text) == response.raw
    asked = [ChatMessage(role="user", content="Who?")]
    assert (await structured.achat(asked)).raw == response.raw
    assert list(structured.stream_chat(asked))[-1].raw == response.raw
    assert [r async for r in await structured.astream_chat(asked)][-1].raw == response.raw


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize"])
def test_a_structured_llm_in_a_query_engine(llm: Memograft, seen: Seen, mode: str) -> None:
    structured = llm.model_copy(update={"max_tokens": 64}).as_structured_llm(Small)
    engine = RetrieverQueryEngine.from_args(Pages(PAGE), llm=structured, response_mode=mode)
    assert isinstance(engine.query(QUESTION).response, Small)  # type: ignore[union-attr]
    assert seen.documents == [PAGE]


def test_output_cls_of_a_query_engine(llm: Memograft, seen: Seen) -> None:
    llm = llm.model_copy(update={"max_tokens": 64})
    engine = RetrieverQueryEngine.from_args(Pages(PAGE), llm=llm, output_cls=Small, response_mode="tree_summarize")
    assert isinstance(engine.query(QUESTION).response, Small)  # type: ignore[union-attr]
    assert seen.documents == [PAGE]


def test_what_no_schema_can_say_is_said_by_an_error(llm: Memograft) -> None:
    class Odd(BaseModel):
        a: bool

        @field_validator("a")
        @classmethod
        def never(cls, value: bool) -> bool:
            raise ValueError("never right")

    with pytest.raises(
        RuntimeError, match=r"(?s)the answer must be a Odd, got .*never right.*loosen its validators"
    ) as e:
        llm.structured_predict(Odd, PROMPT, query_str="Who?")
    assert isinstance(e.value.__cause__, ValueError)


def test_no_class(llm: Memograft) -> None:
    with pytest.raises(ValueError, match="`output_cls` must be a pydantic class, got 'City'"):
        llm.as_structured_llm("City")  # type: ignore[arg-type]


def test_json_of_a_schema_at_an_endpoint(llm: Memograft) -> None:
    response = llm.complete("Who?", json_schema=Small.model_json_schema(), max_tokens=40)
    assert Small.model_validate_json(response.text)


def test_events(llm: Memograft) -> None:
    from test_events import Watch

    root, watch = get_dispatcher(), Watch()
    root.add_event_handler(watch)
    try:
        llm.structured_predict(Small, PROMPT, query_str="Who?")
        list(llm.stream_structured_predict(Small, PROMPT, query_str="Who?"))
    finally:
        root.event_handlers.remove(watch)
    names = watch.names()
    assert names[0] == "LLMStructuredPredictStartEvent"
    assert {"LLMStructuredPredictInProgressEvent", "LLMStructuredPredictEndEvent"} <= set(names)
