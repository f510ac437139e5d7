"""The conversion of messages, and the documents in them."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
)
from memograft.chat import Conversation
from memograft.errors import SettingsError

from langchain_memograft._messages import read_conversation

ONE, TWO = Document("one", id="1"), Document("two", id="2")
ASK = HumanMessage("Who?")


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


def test_names_are_kept() -> None:
    assert read_conversation([HumanMessage("Who?", name="ann")]).messages[0]["name"] == "ann"


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
