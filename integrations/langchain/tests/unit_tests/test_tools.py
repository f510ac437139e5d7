"""Tools: calls that are forced on any model, calls that a model makes by itself, and what is refused."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from memograft import Document as Passage
from memograft.errors import SettingsError
from pydantic import BaseModel, Field

from calling_model import SEINE, WEATHER, WEATHER_CALL, calling_engine, get_weather
from langchain_memograft import ChatMemograft
from langchain_memograft._schema import closed, hoisted
from langchain_memograft._tools import choice_of, plan
from pages import PAGE, QUESTION


class Look(BaseModel):
    """Look something up."""

    where: Literal["atlas", "herbal"]
    page: int = Field(ge=1, le=9)


class Node(BaseModel):
    """A tree."""

    name: Literal["leaf"]
    children: list[Node] = Field(max_length=1)


@tool(response_format="content_and_artifact")
def search(query: str) -> tuple[str, list[Passage]]:
    """Search the pages."""
    return "found", [Passage(PAGE, "p")]


@pytest.fixture(scope="module")
def calling() -> ChatMemograft:
    return ChatMemograft.from_engine(calling_engine(), model="calling", memory=None, max_tokens=100)


@pytest.mark.parametrize(
    "choice", ["any", "required", True, "Look", {"type": "function", "function": {"name": "Look"}}]
)
def test_a_forced_call_is_of_its_schema_on_any_model(chat: ChatMemograft, choice: Any) -> None:
    answer = chat.bind_tools([Look], tool_choice=choice, max_tokens=60).invoke(QUESTION)
    assert isinstance(answer, AIMessage)
    (call,) = answer.tool_calls
    assert call["name"] == "Look"
    assert Look.model_validate(call["args"])
    assert call["id"]
    assert answer.content == ""
    assert answer.response_metadata["finish_reason"] == "tool_calls"


def test_a_choice_among_several_tools(chat: ChatMemograft) -> None:
    answer = chat.bind_tools([Look, search, Node], tool_choice="any", max_tokens=80).invoke(QUESTION)
    assert answer.tool_calls[0]["name"] in ("Look", "search", "Node")
    named = chat.bind_tools([Look, search, Node], tool_choice="Node", max_tokens=80).invoke(QUESTION)
    assert Node.model_validate(named.tool_calls[0]["args"])


def test_a_forced_call_streams_as_one_chunk(chat: ChatMemograft) -> None:
    chunks = list(chat.bind_tools([Look], tool_choice="any", max_tokens=60).stream(QUESTION))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    assert whole.text == ""
    assert Look.model_validate(whole.tool_calls[0]["args"])
    assert whole.chunk_position == "last"


async def test_forced_calls_of_async_callers(chat: ChatMemograft) -> None:
    bound = chat.bind_tools([Look], tool_choice="any", max_tokens=60)
    answer = await bound.ainvoke(QUESTION)
    assert answer.tool_calls[0]["args"] == bound.invoke(QUESTION).tool_calls[0]["args"]


def test_agentic_retrieval_on_a_model_without_tools(chat: ChatMemograft) -> None:
    messages: list[BaseMessage] = [HumanMessage(QUESTION)]
    messages.append(chat.bind_tools([search], tool_choice="search", max_tokens=60).invoke(messages))
    call = messages[1].tool_calls[0]  # type: ignore[attr-defined]
    messages.append(search.invoke(call))
    assert isinstance(messages[2], ToolMessage)
    answer = chat.bind_tools([search], tool_choice="none").invoke(messages)
    assert answer.text == PAGE
    assert answer.response_metadata["memograft"]["memorized"] == ["p"]


def test_a_free_choice_needs_a_model_that_calls_tools(chat: ChatMemograft) -> None:
    for choice in (None, "auto"):
        with pytest.raises(
            ModelInvalidRequestError, match=r'no place for tools, .* force a call with tool_choice="any'
        ):
            chat.bind_tools([Look], tool_choice=choice).invoke(QUESTION)


def test_a_model_calls_tools_by_its_own_choice(calling: ChatMemograft) -> None:
    bound = calling.bind_tools([get_weather])
    asked: list[BaseMessage] = [HumanMessage(WEATHER)]
    answer = bound.invoke(asked)
    (call,) = answer.tool_calls
    assert {"name": call["name"], "arguments": call["args"]} == WEATHER_CALL
    assert answer.content == ""
    assert bound.invoke([*asked, answer, ToolMessage("It's sunny.", tool_call_id=call["id"])]).text == "It's sunny."
    assert calling.invoke("Hello").text == SEINE
    first, *rest = bound.stream(asked)
    for chunk in rest:
        first += chunk
    assert first.tool_calls[0]["args"] == call["args"]  # type: ignore[attr-defined]


def test_a_call_that_was_cut_off_is_invalid(calling: ChatMemograft) -> None:
    answer = calling.bind_tools([get_weather], max_tokens=8).invoke(WEATHER)
    assert answer.tool_calls == []
    assert answer.response_metadata["finish_reason"] == "length"
    assert [call["type"] for call in answer.invalid_tool_calls] == ["invalid_tool_call"]


def test_strict_is_promised_only_where_it_is_kept(calling: ChatMemograft) -> None:
    assert calling.bind_tools([get_weather], tool_choice="any", strict=True).invoke(WEATHER).tool_calls
    with pytest.raises(ModelInvalidRequestError, match=r"strict=True promises arguments of the schema, .*; pass tool"):
        calling.bind_tools([get_weather], strict=True).invoke(WEATHER)


def test_choices_in_all_spellings() -> None:
    assert [choice_of(c, ["f"]) for c in (None, "auto", "any", "required", True, "f")] == [
        *("auto", "auto", "any", "any", "any", "f")
    ]
    assert choice_of(False, []) == choice_of("none", ["f"]) == "none"
    for choice in ("g", 3, {}, {"type": "function"}):
        if choice in ({}, {"type": "function"}):
            continue
        with pytest.raises(SettingsError, match=r"`tool_choice` must be .* and the tools are \['f'\]"):
            choice_of(choice, ["f"])
    with pytest.raises(SettingsError, match="tool_choice='any' forces a call, and there are no tools; bind some"):
        choice_of("any", [])


def test_a_choice_that_cannot_be_is_refused_when_it_is_bound(chat: ChatMemograft) -> None:
    with pytest.raises(ModelInvalidRequestError, match="`tool_choice` must be"):
        chat.bind_tools([Look], tool_choice="search")


def test_tools_beside_a_response_format_are_called_or_answered() -> None:
    given = {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object", "properties": {}}}},
    }
    how = plan(calling_engine(), given)
    assert how.reads == "call or text"
    assert how.json_schema is not None
    assert len(how.json_schema["anyOf"]) == 2

    class Said:
        text, finish_reason = '{"x": 1}', "stop"

    assert how.read(calling_engine(), Said()).content == '{"x": 1}'  # type: ignore[arg-type]
    Said.text = '{"name": "f", "arguments": {}}'
    assert how.read(calling_engine(), Said()).tool_calls[0]["name"] == "f"  # type: ignore[arg-type]


def test_schemas_are_closed_where_they_name_their_properties() -> None:
    schema = {
        "type": "object",
        "properties": {"default": {"type": "object", "properties": {}}, "open": {"type": "object"}},
        "$defs": {"properties": {"properties": {}, "additionalProperties": True}},
        "allOf": [],
    }
    assert closed(schema) == {
        "type": "object",
        "properties": {
            "default": {"type": "object", "properties": {}, "additionalProperties": False},
            "open": {"type": "object"},
        },
        "$defs": {"properties": {"properties": {}, "additionalProperties": True}},
        "allOf": [],
    }


def test_definitions_are_hoisted_with_names_of_their_own() -> None:
    definitions: dict[str, Any] = {}
    schema = {
        "properties": {"a": {"$ref": "#/$defs/A"}, "default": {"$ref": "#"}},
        "$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}, {"const": {"$ref": "#/$defs/A"}}]}},
    }
    part = hoisted(schema, "t_", definitions)
    assert part == {"properties": {"a": {"$ref": "#/$defs/t_A"}, "default": {"$ref": "#/$defs/t_"}}}
    assert definitions["t_A"] == {"anyOf": [{"$ref": "#/$defs/t_A"}, {"const": {"$ref": "#/$defs/A"}}]}
    assert definitions["t_"] == part
    assert "$defs" not in json.dumps(part).replace("#/$defs/", "")


def test_a_model_that_may_call_tools_is_steered_and_cites(calling: ChatMemograft) -> None:
    from memograft import Rtd

    call = {"name": WEATHER_CALL["name"], "args": WEATHER_CALL["arguments"], "id": "1"}
    asked: list[BaseMessage] = [HumanMessage(WEATHER), AIMessage("", tool_calls=[call])]
    asked.append(ToolMessage(get_weather("here"), tool_call_id="1"))
    free = calling.bind_tools([get_weather])
    said = free.invoke(asked)
    assert isinstance(said.content, str)
    assert said.text
    store = calling.build_datastore([[*asked, said]], progress=False)
    steered = free.bind(datastore=Rtd(store, weight=0.5, gate=None))
    answer = steered.invoke(asked)
    assert answer.text == said.text
    (block,) = answer.content
    assert isinstance(block, dict)
    assert {cited["extras"]["source_id"] for cited in block["annotations"]} == set(store.ids())
    first, *rest = steered.stream(asked)
    assert sum(rest, first).content == answer.content
