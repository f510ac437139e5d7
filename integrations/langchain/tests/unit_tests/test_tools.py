"""Tools in LangChain's forms, and its messages and chunks for calls; the rest is in the conformance suite."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from conformance.calling import WEATHER, get_weather
from conformance.pages import PAGE, QUESTION
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.messages import AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_core.utils.json import parse_partial_json
from memograft import Document as Passage
from memograft import Engine
from pydantic import BaseModel, Field

from langchain_memograft import ChatMemograft


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


@pytest.fixture
def able(calling: Engine) -> ChatMemograft:
    return ChatMemograft.from_engine(calling, model="calling", memory=None, max_tokens=100)


def test_a_schema_that_holds_itself(chat: ChatMemograft) -> None:
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


def test_agentic_retrieval_on_a_model_without_tools(chat: ChatMemograft) -> None:
    messages: list[BaseMessage] = [HumanMessage(QUESTION)]
    messages.append(chat.bind_tools([search], tool_choice="search", max_tokens=60).invoke(messages))
    call = messages[1].tool_calls[0]  # type: ignore[attr-defined]
    messages.append(search.invoke(call))
    assert isinstance(messages[2], ToolMessage)
    answer = chat.bind_tools([search], tool_choice="none").invoke(messages)
    assert answer.text == PAGE
    assert answer.response_metadata["memograft"]["memorized"] == ["p"]


@pytest.mark.parametrize("stop", ['":', ","])  # LangChain completes these to {} and {"name": "Look"}
def test_a_call_that_was_cut_off_is_invalid_in_streams_too(chat: ChatMemograft, stop: str) -> None:
    model = chat.bind_tools([Look], tool_choice="any", max_tokens=60, stop=[stop])
    (call,) = model.invoke(QUESTION).invalid_tool_calls
    assert isinstance(parse_partial_json(str(call["args"])), dict)
    first, *rest = model.stream(QUESTION)
    streamed = sum(rest, first)
    assert isinstance(streamed, AIMessageChunk)
    assert streamed.tool_calls == []
    (again,) = streamed.invalid_tool_calls
    assert (again["name"], call["name"], json.loads(str(again["args"]))) == ("Look", "Look", call["args"])


def test_strict_is_promised_only_where_it_is_kept(able: ChatMemograft) -> None:
    assert able.bind_tools([get_weather], tool_choice="any", strict=True).invoke(WEATHER).tool_calls
    with pytest.raises(ModelInvalidRequestError, match=r"strict=True promises arguments of the schema, .*; pass tool"):
        able.bind_tools([get_weather], strict=True).invoke(WEATHER)


def test_a_choice_that_cannot_be_is_refused_when_it_is_bound(chat: ChatMemograft) -> None:
    with pytest.raises(ModelInvalidRequestError, match="`tool_choice` must be"):
        chat.bind_tools([Look], tool_choice="search")
