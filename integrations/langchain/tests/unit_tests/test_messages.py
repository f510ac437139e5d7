"""Conversations: what becomes of messages, and where documents are found in them."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from memograft.chat import Conversation
from memograft.errors import SettingsError

from langchain_memograft._messages import read_conversation

ONE, TWO = Document("one", id="1"), Document("two", id="2")
ASK = HumanMessage("Who?")


def call(*ids: str, content: str = "") -> AIMessage:
    return AIMessage(content, tool_calls=[{"name": "search", "args": {"q": "x"}, "id": id} for id in ids])


def found(id: str, *documents: Any) -> ToolMessage:
    return ToolMessage("found", tool_call_id=id, artifact=list(documents))


def said(told: Conversation) -> list[tuple[object, object]]:
    return [(m["role"], m["content"]) for m in told.messages]


def ids(told: Conversation) -> list[str]:
    return [d.id for d in told.documents]


def test_roles_and_text_blocks() -> None:
    messages: list[BaseMessage] = [
        SystemMessage("Be brief."),
        HumanMessage(["Who", {"type": "text", "text": " is it?"}]),
        AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "Me."}]),
        ChatMessage("Who?", role="human"),
        ChatMessage("Noted.", role="developer"),
    ]
    assert said(read_conversation(messages)) == [
        ("system", "Be brief."),
        ("user", "Who is it?"),
        ("assistant", "Me."),
        ("user", "Who?"),
        ("system", "Noted."),  # OpenAI's name for it
    ]


def test_turns_of_one_role_in_a_row_become_one() -> None:
    messages = [SystemMessage("a"), SystemMessage("b"), ASK, HumanMessage("When?"), AIMessage("x"), AIMessage("y"), ASK]
    assert said(read_conversation(messages)) == [
        ("system", "a\n\nb"),
        ("user", "Who?\n\nWhen?"),
        ("assistant", "x\n\ny"),
        ("user", "Who?"),
    ]


def test_names_are_kept() -> None:
    assert read_conversation([HumanMessage("Who?", name="ann")]).messages[0]["name"] == "ann"


@pytest.mark.parametrize("kind", ["image", "image_url", "audio", "video", "file", "input_audio", None])
def test_what_is_no_text_is_refused(kind: Any) -> None:
    message = HumanMessage([{"type": "text", "text": "What is this?"}, {"type": kind, "url": "https://x.y/z.png"}])
    with pytest.raises(SettingsError, match=rf"messages\[0\]\.content\[1\] is .*\b{kind}\b.*, and a local lan"):
        read_conversation([message])


def test_messages_of_other_kinds_are_refused() -> None:
    with pytest.raises(
        SettingsError, match=r"messages\[1\] is a FunctionMessage, for which chat templates have no role"
    ):
        read_conversation([ASK, FunctionMessage("x", name="f")])


def test_documents_of_the_call_and_of_the_last_human_message() -> None:
    asked = HumanMessage("Who?", additional_kwargs={"documents": [ONE]})
    assert ids(read_conversation([ASK], [ONE, TWO])) == ["1", "2"]
    assert ids(read_conversation([asked])) == ["1"]
    assert ids(read_conversation([asked, AIMessage("Me."), ASK])) == []  # of a turn that is over
    with pytest.raises(SettingsError, match="documents came both as `documents=` of the call and in `documents` of"):
        read_conversation([asked], [TWO])


def test_content_blocks_are_documents_wherever_they_stand() -> None:
    block = {"type": "text-plain", "text": "one", "id": "1"}
    other = {
        "type": "search_result",
        "source": "s",
        "title": "t",
        "content": [{"type": "text", "text": "two"}],
        "id": "2",
    }
    first = HumanMessage([block, {"type": "text", "text": "Who?"}])
    told = read_conversation([first, AIMessage("Me."), HumanMessage([{"type": "text", "text": "When?"}, other])])
    assert ids(told) == ["1", "2"]
    assert said(told) == [("user", "Who?"), ("assistant", "Me."), ("user", "When?")]


def test_channels_add_up_in_their_order_and_nothing_comes_twice() -> None:
    block = {"type": "text-plain", "text": "two", "id": "2"}
    messages = [
        HumanMessage([{"type": "text", "text": "<c> four </c>Who?"}, block]),
        call("a"),
        found("a", Document("three", id="3"), ONE),
    ]
    told = read_conversation(messages, [ONE], takes_tools=True, delimiters=("<c>", "</c>"))
    assert [d.text for d in told.documents] == ["one", "two", "three", "four"]


def test_a_retrieving_tool_on_a_template_without_tools_leaves_its_documents_only() -> None:
    told = read_conversation([ASK, call("a", "b"), found("a", ONE), found("b", TWO, ONE)], takes_tools=False)
    assert ids(told) == ["1", "2"]
    assert said(told) == [("user", "Who?")]
    told = read_conversation([ASK, call("a", content="Let me look."), found("a")], takes_tools=False)
    assert (ids(told), said(told)) == ([], [("user", "Who?"), ("assistant", "Let me look.")])
    told = read_conversation(
        [ASK, call("a"), found("a", ONE), AIMessage("Me."), HumanMessage("When?")], takes_tools=False
    )
    assert (ids(told), said(told)) == ([], [("user", "Who?"), ("assistant", "Me."), ("user", "When?")])


def test_other_tools_are_told_as_text_where_the_template_has_no_place_for_them() -> None:
    messages = [ASK, call("a"), ToolMessage("4", tool_call_id="a")]
    told = read_conversation(messages, takes_tools=False)
    assert [m["role"] for m in told.messages] == ["user", "assistant", "user"]
    assert told.messages[1]["content"] == '{"name": "search", "arguments": {"q": "x"}}'
    assert str(told.messages[2]["content"]).startswith("Result of search: 4")
    assert told.query == "Who?"
    told = read_conversation(messages, takes_tools=True)
    assert told.messages[1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "id": "a", "function": {"name": "search", "arguments": {"q": "x"}}}],
        },
        {"role": "tool", "content": "4", "tool_call_id": "a"},
    ]


def test_delimiters_are_looked_for_only_where_they_were_asked_for() -> None:
    prompt = [SystemMessage("Use this.<c>one</c><c> </c>"), HumanMessage("<c>two</c>\nWho?")]
    assert ids(read_conversation(prompt)) == []
    told = read_conversation(prompt, delimiters=("<c>", "</c>"))
    assert [d.text for d in told.documents] == ["one", "two"]
    assert said(told) == [("system", "Use this."), ("user", "Who?")]
    with pytest.raises(
        SettingsError, match=r"messages\[0\] opens a context with '<c>' and does not close it with '</c>'"
    ):
        read_conversation([HumanMessage("<c>two Who?")], delimiters=("<c>", "</c>"))
