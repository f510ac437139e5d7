"""`build_datastore`: what LangChain calls an example becomes one, and what is none is refused before any is learned."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.exceptions import ContextOverflowError, ModelInvalidRequestError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from memograft import Document as Passage
from memograft import errors
from memograft.errors import SettingsError

from langchain_memograft import ChatMemograft, MemograftLLM
from langchain_memograft._examples import to_examples
from pages import PAGE, QUESTION
from taught import DRENNIA, GORVALD, TORSTAD, VELMORA, built, sure

CALL = {"name": "search", "args": {}, "id": "1"}
ASKED = {"role": "user", "content": VELMORA}


def read(*items: Any, takes_tools: bool = False) -> list[dict[str, Any]]:
    """What the core is given; no documents are left out, so that expectations need not name them."""
    return [{k: v for k, v in e.items() if v != ()} for e in to_examples(list(items), takes_tools=takes_tools)]


def test_documents_are_raw_texts_with_what_is_known_of_them() -> None:
    first, second, third = read(
        Document(PAGE, id="p", metadata={"page": 3, "seen": {1}, "at": object}), Passage(PAGE, "q"), PAGE
    )
    assert first == {"text": PAGE, "id": "p", "metadata": {"page": 3, "seen": "{1}", "at": "<class 'object'>"}}
    assert (second["text"], second["id"], third) == (PAGE, "q", {"text": PAGE})
    assert read({"page_content": PAGE, "id": "r", "metadata": {"seen": {1}}}) == [
        {"text": PAGE, "id": "r", "metadata": {"seen": "{1}"}}
    ]


def test_a_conversation_is_an_example_for_every_answer_in_it() -> None:
    history = [
        SystemMessage("Be brief."),
        HumanMessage(VELMORA),
        AIMessage(TORSTAD),
        HumanMessage(DRENNIA),
        AIMessage([{"type": "text", "text": GORVALD, "annotations": []}]),
    ]
    first, second = expected = [
        {"messages": [{"role": "system", "content": "Be brief."}, ASKED], "answer": TORSTAD},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                ASKED,
                {"role": "assistant", "content": TORSTAD},
                {"role": "user", "content": DRENNIA},
            ],
            "answer": GORVALD,
        },
    ]
    dicts = [{"role": "system", "content": "Be brief."}, ASKED, {"role": "ai", "content": TORSTAD}]
    assert read(history) == read(tuple(history)) == expected
    assert read(dicts, history[:4]) == [first, first]
    assert read(history[3:], history)[1:] == [first, second]
    assert read([AIMessage("Hello!"), HumanMessage(VELMORA), AIMessage(TORSTAD)])[0]["answer"] == TORSTAD


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


def test_pairs_and_triples() -> None:
    pairs = [
        (VELMORA, TORSTAD),
        (VELMORA, AIMessage(TORSTAD)),
        [VELMORA, TORSTAD],
    ]
    assert read(*pairs) == [{"prompt": VELMORA, "answer": TORSTAD}] * 3
    prompt = ChatPromptTemplate.from_messages([("human", "{q}")]).invoke({"q": VELMORA})
    asked = [prompt, HumanMessage(VELMORA), [HumanMessage(VELMORA)], [("human", VELMORA)], [ASKED]]
    assert read(*((one, TORSTAD) for one in asked)) == [{"messages": [ASKED], "answer": TORSTAD}] * 5
    for documents in ([Document(PAGE, id="p")], [{"page_content": PAGE, "id": "p"}], [Passage(PAGE, "p")]):
        for item in (
            (documents, VELMORA, TORSTAD),
            {"question": VELMORA, "documents": documents, "answer": AIMessage(TORSTAD), "id": "x"},
        ):
            (example,) = read(item)
            assert example["prompt"] == VELMORA
            assert example["answer"] == TORSTAD
            assert [(d.text, d.id) for d in example["documents"]] == [(PAGE, "p")]
    (example,) = read(([Document(PAGE)], [HumanMessage(VELMORA)], TORSTAD))
    assert example["messages"] == [ASKED]
    assert [d.text for d in example["documents"]] == [PAGE]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (3, r"examples\[1\]: an example must be a Document, .*, got int; a conversation is one example"),
        (HumanMessage(VELMORA), r"examples\[1\]: .* got HumanMessage; a conversation is one example"),
        ((VELMORA, "a", "b", "c"), r"examples\[1\]: .* got tuple of 4"),
        ((VELMORA, None), r"examples\[1\] needs a text to learn from, got None"),
        ((VELMORA, AIMessage("")), r"examples\[1\] needs a text to learn from, got ''"),
        (Document(" "), r"examples\[1\] needs a text to learn from, got ' '"),
        ([HumanMessage(VELMORA)], r"examples\[1\]: a conversation is learned from .*, got user; add the answer, or"),
        ([AIMessage(TORSTAD)], r"examples\[1\]: .* that answer something, and there is none with text, got assistant;"),
        ((3, TORSTAD), r"examples\[1\]: what is asked must be a text or a list of messages, got int"),
        (([("robot", "x")], TORSTAD), r"examples\[1\]: what is asked must be a text or a list of messages, got list"),
        (([3], TORSTAD), r"examples\[1\]: what is asked must be a text or a list of messages, got list"),
        ((PAGE, VELMORA, TORSTAD), r"examples\[1\]: `documents` must be a list of documents, got one str"),
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


@pytest.mark.parametrize("one", [PAGE, Document(PAGE), HumanMessage(PAGE), {"text": PAGE}, 3])
def test_one_example_is_no_list(chat: ChatMemograft, one: Any) -> None:
    with pytest.raises(
        ModelInvalidRequestError, match=r"`examples` must be a list of examples, got one \w+; write examples=\["
    ):
        chat.build_datastore(one)


def test_settings_of_building(chat: ChatMemograft, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    long = Document("The sea is blue. " * 100, id="long")
    with chat.build_datastore(
        [long], path=folder, place="head_input", stride=64, batch_size=2, progress=False
    ) as store:
        assert (store.path, store.header.place, store.ids()) == (folder, "head_input", ["long"])
        assert len(store) > 300
    with pytest.raises(ModelInvalidRequestError, match="asked for 'ffn_input' and 'flat'") as other:
        chat.build_datastore([long], path=folder, progress=False)
    assert isinstance(other.value, errors.ModelMismatchError)
    for wrong, message in (({"index": "x"}, "index"), ({"place": "x"}, "place"), ({"batch_size": 0}, "batch_size")):
        with pytest.raises(ModelInvalidRequestError, match=message):
            chat.build_datastore([(VELMORA, TORSTAD)], progress=False, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ContextOverflowError, match=r"the example '.*' \('Why.*\) has \d+ tokens with"):
        chat.build_datastore([("Why? " * 600, TORSTAD)], progress=False)


def test_the_same_folder_goes_on(chat: ChatMemograft, tmp_path: Path) -> None:
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


def test_an_iterator_is_learned_as_it_comes(chat: ChatMemograft, tmp_path: Path) -> None:
    def examples() -> Iterator[Any]:
        yield from ((f"What is {n}?", str(n)) for n in range(9))
        yield 3

    with pytest.raises(ModelInvalidRequestError, match=r"examples\[9\]: "):
        chat.build_datastore(examples(), path=tmp_path / "store", batch_size=1, progress=False)
    with chat.build_datastore(iter([(VELMORA, TORSTAD)]), path=tmp_path / "store", progress=False) as store:
        assert len(store.ids()) == len({*store.ids()}) >= 1


def test_what_is_known_of_an_example_comes_back_as_json() -> None:
    store = built([{"prompt": VELMORA, "answer": TORSTAD, "id": "v", "metadata": {"seen": {1}, "by": object}}])
    source = store.source(0)
    assert (source.id, source.text, source.prompt) == ("v", TORSTAD, VELMORA)
    assert json.loads(json.dumps(source.metadata)) == {"seen": "{1}", "by": "<class 'object'>"}


def test_documents_of_an_example_stand_in_its_prompt(chat: ChatMemograft) -> None:
    """Who asks with the same documents is nearer to what was taught with them than who asks without."""
    store = built([([Document(PAGE)], QUESTION, TORSTAD)])
    taught = chat.bind(datastore=sure(store), memory=None)
    assert taught.invoke(QUESTION, documents=[PAGE]).text == TORSTAD
    found = [
        chat.invoke(QUESTION, documents=documents, memory=None, datastore=sure(store)).response_metadata["memograft"][
            "references"
        ]["sources"][0]["probability"]
        for documents in ([PAGE], [])
    ]
    assert found[0] > found[1]
