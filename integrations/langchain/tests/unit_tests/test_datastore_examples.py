"""Examples for `build_datastore` in LangChain's forms, and errors for other values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conformance.pages import DRENNIA, GORVALD, PAGE, QUESTION, TORSTAD, VELMORA
from langchain_core.documents import Document
from langchain_core.exceptions import ContextOverflowError, ModelInvalidRequestError
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from memograft import errors
from memograft.errors import SettingsError

from langchain_memograft import ChatMemograft, MemograftLLM
from langchain_memograft._examples import to_examples
from taught import sure

CALL = {"name": "search", "args": {}, "id": "1"}
ASKED = {"role": "user", "content": VELMORA}


def read(*items: Any, takes_tools: bool = False) -> list[dict[str, Any]]:
    """The examples in the core's form, without empty `documents`."""
    return [{k: v for k, v in e.items() if v != ()} for e in to_examples(list(items), takes_tools=takes_tools)]


def test_documents_in_messages_are_found_as_those_of_a_call_are() -> None:
    attached = HumanMessage(VELMORA, additional_kwargs={"documents": [Document(PAGE, id="p")]})
    block = HumanMessage([{"type": "text-plain", "text": PAGE, "id": "p"}, {"type": "text", "text": VELMORA}])
    found = [
        HumanMessage(VELMORA),
        AIMessage("", tool_calls=[CALL]),
        ToolMessage("1 page", tool_call_id="1", artifact=[Document(PAGE, id="p")]),
    ]
    for prompt in ([attached], [block], found):
        for item in ([*prompt, AIMessage(TORSTAD)], (prompt, TORSTAD), {"messages": prompt, "answer": TORSTAD}):
            (example,) = read(item)
            assert example["messages"] == [ASKED]
            assert [d.id for d in example["documents"]] == ["p"]
            assert example["answer"] == TORSTAD
    calling = read([*found, AIMessage(TORSTAD)], takes_tools=True)[0]["messages"]
    assert [m["role"] for m in calling] == ["user", "assistant", "tool"]


def test_a_conversation_with_tools_is_learned_where_the_template_has_no_place_for_them() -> None:
    called = [HumanMessage(VELMORA), AIMessage("", tool_calls=[CALL]), ToolMessage("4", tool_call_id="1")]
    (example,) = read([*called, AIMessage(TORSTAD)])
    assert [m["role"] for m in example["messages"]] == ["user", "assistant", "user"]
    assert read([("human", VELMORA), ("ai", TORSTAD)]) == [{"messages": [ASKED], "answer": TORSTAD}]


def test_prompts_in_forms_of_langchain() -> None:
    prompt = ChatPromptTemplate.from_messages([("human", "{q}")]).invoke({"q": VELMORA})
    assert read((prompt, TORSTAD), ([("human", VELMORA)], TORSTAD)) == [{"messages": [ASKED], "answer": TORSTAD}] * 2


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((VELMORA, AIMessage("")), r"examples\[1\] needs a text to learn from, got ''"),
        (([("robot", "x")], TORSTAD), r"examples\[1\]: what is asked must be a text or a list of messages, got list"),
        (
            ([3], VELMORA, TORSTAD),
            r"examples\[1\]: documents\[0\] must be a Document, .*; wrap it as Document\(page",
        ),
        (
            [HumanMessage([{"type": "image_url", "image_url": {"url": "https://x.y/z.png"}}]), AIMessage("A cat.")],
            r"examples\[1\]: messages\[0\]\.content\[0\] is an image \('image_url'\)",
        ),
    ],
)
def test_what_is_no_example_is_refused_before_anything_is_learned(
    chat: ChatMemograft, tmp_path: Path, item: Any, message: str
) -> None:
    folder = tmp_path / "store"
    with pytest.raises(ModelInvalidRequestError, match=message) as no:
        chat.build_datastore([(VELMORA, TORSTAD), item], path=folder, progress=False)
    assert isinstance(no.value, SettingsError)
    assert not folder.exists()


def test_building_raises_errors_of_langchain(chat: ChatMemograft, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    chat.build_datastore([PAGE], path=folder, place="head_input", progress=False).close()
    with pytest.raises(ModelInvalidRequestError, match="asked for 'ffn_input' and 'flat'"):
        chat.build_datastore([PAGE], path=folder, progress=False)
    with pytest.raises(ContextOverflowError, match=r"the example '.*' \('Why.*\) has \d+ tokens with"):
        chat.build_datastore([("Why? " * 600, TORSTAD)], progress=False)


def test_chat_models_and_llms_build_and_extend_one_folder(chat: ChatMemograft, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with chat.build_datastore([(VELMORA, TORSTAD)], path=folder, progress=False) as store:
        first = store.ids()
        with pytest.raises(ModelInvalidRequestError) as locked:
            chat.build_datastore([(DRENNIA, GORVALD)], path=folder, progress=False)
        assert isinstance(locked.value, errors.StoreLockedError)
        assert chat.add_to_datastore(store, [(VELMORA, TORSTAD)], progress=False) == 0
    llm = MemograftLLM(model="tiny")
    history = [HumanMessage(DRENNIA), AIMessage(GORVALD)]
    with llm.build_datastore([(VELMORA, TORSTAD), history], path=folder, progress=False) as store:
        assert store.ids()[:1] == first
        assert len(store.ids()) == 2
        assert llm.invoke(DRENNIA, datastore=sure(store)) == GORVALD
    with pytest.raises(ModelInvalidRequestError, match="was opened read-only or is closed") as closed:
        chat.add_to_datastore(store, [QUESTION])
    assert isinstance(closed.value, errors.StoreReadOnlyError)
