"""Tools: calls that are forced on any model, calls that a model makes by itself, and what is refused."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from langchain.agents import create_agent
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from memograft import Document as Passage
from memograft.chat import choice_of, plan
from memograft.errors import SettingsError
from pydantic import BaseModel, Field

from calling_model import SEINE, WEATHER, WEATHER_CALL, calling_engine, get_weather
from langchain_memograft import ChatMemograft
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


@tool
def weigh(animal: str) -> str:
    """Weigh an animal."""
    return "It weighs 4 kg."


def test_tools_are_bound_to_a_model_whose_template_has_no_place_for_them(chat: ChatMemograft) -> None:
    for choice in (None, "auto"):
        answer = chat.bind_tools([weigh], tool_choice=choice).invoke(QUESTION)
        assert answer.text or answer.tool_calls
        assert answer.invalid_tool_calls == []
        first, *rest = chat.bind_tools([weigh], tool_choice=choice).stream(QUESTION)
        assert sum(rest, first).text == answer.text  # type: ignore[attr-defined]


def test_results_of_tools_are_told_to_a_model_whose_template_has_no_place_for_them(chat: ChatMemograft) -> None:
    asked: list[BaseMessage] = [HumanMessage("What does a cat weigh?")]
    asked.append(chat.bind_tools([weigh], tool_choice="any", max_tokens=60).invoke(asked))
    (call,) = asked[1].tool_calls  # type: ignore[attr-defined]
    asked.append(weigh.invoke(call))
    answer = chat.bind_tools([weigh]).invoke(asked)
    assert answer.text or answer.tool_calls


def test_an_agent_of_langchain_runs_on_a_model_without_a_tool_template(chat: ChatMemograft) -> None:
    agent = create_agent(chat, tools=[weigh])
    messages = agent.invoke({"messages": [HumanMessage(QUESTION)]}, {"recursion_limit": 8})["messages"]
    assert messages[-1].type == "ai"
    assert messages[-1].text


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
    empty = {"type": "object", "properties": {}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": empty}}]
    answers = {"type": "json_schema", "json_schema": {"schema": empty}}
    how = plan(calling_engine(), tools, None, answers)
    assert how.reads == "calls or json"
    assert how.json_schema is not None
    assert len(how.json_schema["anyOf"]) == 2

    class Said:
        text, finish_reason = '{"x": 1}', "stop"

    assert how.read(calling_engine(), Said()).content == '{"x": 1}'  # type: ignore[arg-type]
    Said.text = '{"name": "f", "arguments": {}}'
    assert how.read(calling_engine(), Said()).calls[0].name == "f"  # type: ignore[arg-type]


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
