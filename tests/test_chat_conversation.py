"""Conversion of messages in OpenAI's form to an engine's messages and documents."""

from __future__ import annotations

from typing import Any

import pytest

from memograft import Document, Engine, Request, Sampling
from memograft.chat import Plan, cut_out, document_of, plan, read_conversation, text_of, to_documents
from memograft.errors import SettingsError

CALL = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"query": "bergamot"}'}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "a citrus"}
ASKED = {"role": "user", "content": "What is bergamot?"}
LOOP = [ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT]


def test_roles_and_contents() -> None:
    told = read_conversation(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "system", "content": [{"type": "text", "text": "Be kind."}, "Be good."]},
            {"role": "user", "content": None},
            {"role": "user", "content": "Hello", "name": "ann"},
            {"role": "assistant", "content": [{"type": "reasoning", "text": "Hm."}, {"type": "text", "text": "Hi"}]},
            {"role": "ipython", "content": "1"},
        ]
    )
    assert told.messages == [
        {"role": "system", "content": "Be brief.\n\nBe kind.\nBe good."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "ipython", "content": "1"},
    ]
    assert (told.documents, told.query) == ([], None)


def test_the_first_of_joined_messages_keeps_its_name() -> None:
    told = read_conversation([{**ASKED, "name": "ann"}, ASKED])
    assert told.messages == [{"role": "user", "content": "What is bergamot?\n\nWhat is bergamot?", "name": "ann"}]


def test_calls_for_a_template_that_takes_tools() -> None:
    told = read_conversation(LOOP)
    function = {"name": "search", "arguments": {"query": "bergamot"}}
    assert told.messages[1:] == [
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "id": "c1", "function": function}]},
        RESULT,
    ]


def test_calls_as_text_where_the_template_has_no_place_for_tools() -> None:
    second = {"id": "c2", "function": {"name": "look", "arguments": {}}}
    both = {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, second]}
    told = read_conversation(
        [ASKED, both, RESULT, {"role": "tool", "tool_call_id": "c2", "content": "3"}], takes_tools=False
    )
    assert [message["role"] for message in told.messages] == ["user", "assistant", "user"]
    assert told.messages[1]["content"] == (
        'Let me see.\n\n[{"name": "search", "arguments": {"query": "bergamot"}}, {"name": "look", "arguments": {}}]'
    )
    assert told.messages[2]["content"] == (
        "Result of search: a citrus\n\nResult of look: 3\n\n"
        "The question was: What is bergamot?\nAnswer it in words, or call another function."
    )
    assert told.query == "What is bergamot?"
    other = {"role": "tool", "tool_call_id": "c2", "content": "3", "documents": ["Three."]}
    first = read_conversation([ASKED, both, RESULT, other], takes_tools=False)
    assert str(first.messages[2]["content"]).startswith("Result of search: a citrus\n\nThe question was")
    assert first.query == "What is bergamot?"
    later = read_conversation([*LOOP, {"role": "assistant", "content": "A citrus."}, ASKED], takes_tools=False)
    assert later.query is None
    assert later.messages[2] == {"role": "user", "content": "Result of search: a citrus"}


def test_a_tool_that_returned_documents_is_left_out_where_it_cannot_be_shown() -> None:
    messages: list[Any] = [*LOOP[:2], {**RESULT, "documents": ["Bergamot is a citrus."]}]
    told = read_conversation(messages, takes_tools=False)
    assert (told.messages, told.query) == ([ASKED], None)
    assert [d.text for d in told.documents] == ["Bergamot is a citrus."]
    assert read_conversation([*LOOP[:2], {**RESULT, "documents": []}], takes_tools=False).messages == [ASKED]
    shown = read_conversation(messages)
    assert [m["role"] for m in shown.messages] == ["user", "assistant", "tool"]
    assert shown.documents == told.documents
    assert read_conversation([*messages, ASKED]).documents == []  # documents of an earlier turn are ignored


def test_an_agents_loop_on_a_model_without_tools(tiny: Engine) -> None:
    tool = {"name": "search", "parameters": {"type": "object", "properties": {"query": {"type": "string"}}}}
    how = plan(tiny, [tool])
    told = read_conversation(LOOP, ["Bergamot is a citrus."], takes_tools=tiny.takes_tools, plan=how)
    request = Request(
        messages=told.messages, documents=told.documents, query=told.query, sampling=Sampling(8), **how.request()
    )
    answer = tiny.answer(request)
    assert how.read(tiny, answer).content
    assert [d.text for d in answer.documents] == ["Bergamot is a citrus."]


def test_documents_by_all_ways_and_each_once() -> None:
    block = {"type": "document", "id": "b", "text": "Two.", "title": "T", "metadata": {"page": 1}}
    messages = [
        {"role": "user", "content": "Old?", "documents": ["Nothing."]},
        {
            "role": "user",
            "content": [block, block, {"type": "text", "text": "New? <c>Three.</c>"}],
            "documents": ["One."],
        },
        {"role": "tool", "content": "", "documents": [{"text": "Four."}, "One."]},
    ]
    told = read_conversation(messages, delimiters=("<c>", "</c>"))
    assert [d.text for d in told.documents] == ["One.", "Two.", "Four.", "Three."]
    assert told.documents[1] == Document("Two.", "b", {"page": 1, "title": "T"})
    assert told.messages[0]["content"] == "Old?\n\nNew?"
    with pytest.raises(SettingsError, match="documents came both as `documents=` of the call and in `documents` of"):
        read_conversation(messages, ["One."])


def test_the_instruction_of_a_plan() -> None:
    examples = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "!"})
    told_to = Plan(instruction="Call.", examples=examples)
    system = {"role": "system", "content": "Be brief."}
    assert read_conversation([ASKED], plan=told_to).messages == [
        {"role": "system", "content": "Call."},
        *examples,
        ASKED,
    ]
    told = read_conversation([system, ASKED], plan=told_to)
    assert told.messages == [{"role": "system", "content": "Be brief.\n\nCall."}, *examples, ASKED]
    told = read_conversation([ASKED], plan=told_to, takes_system=False)
    assert told.messages == [{"role": "user", "content": "Call.\n\n?"}, examples[1], ASKED]
    told = read_conversation([ASKED], plan=Plan(instruction="Call."), takes_system=False)
    assert told.messages == [{"role": "user", "content": "Call.\n\nWhat is bergamot?"}]
    assert told.query == "What is bergamot?"
    assert examples[0]["content"] == "?"


def test_templates_with_and_without_a_system_message(make_engine: Any, models: Any) -> None:
    from tokenizers_ import TEMPLATE, make

    assert make_engine().takes_system
    refuses = TEMPLATE.replace(
        "<|{{ m['role']", "{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}<|{{ m['role']"
    )
    drops = TEMPLATE.replace("for m in messages", "for m in messages if m['role'] != 'system'")
    for template in (refuses, drops):
        with Engine(models("llama"), make("bpe", template)) as engine:
            assert not engine.takes_system


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (["hi"], r"messages\[0\] must be a mapping, got str; write \{\"role\": \"user\""),
        ([{"content": "hi"}], r"messages\[0\] must have a role, one of .*, got None; give it one"),
        (
            [{"role": "user", "content": 3}],
            r"the content of messages\[0\] must be text, None or a list of parts, got int",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            r"messages\[0\].content\[0\] is an image \('image_url'\), and a local language model reads text",
        ),
        (
            [{"role": "user", "content": [{"type": "tool_use"}]}],
            r"messages\[0\].content\[0\] is a block of type 'tool_use', and a local language model reads text",
        ),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "a call in `tool_calls` must be in OpenAI's form"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}],
            "the call of 'f' must have a JSON object as arguments, got 'x'; pass a mapping",
        ),
    ],
)
def test_what_cannot_be_told(messages: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_conversation(messages)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text-plain", "text": "A."},
        {"type": "text-plain", "base64": "QS4=", "mime_type": "text/plain"},
        {"type": "document", "source": {"type": "text", "data": "A."}},
        {"type": "document", "source": {"type": "content", "content": [{"text": "A."}]}},
        {"type": "search_result", "content": [{"type": "text", "text": "A."}], "source": "https://a"},
    ],
)
def test_parts_that_are_documents(part: Any) -> None:
    assert text_of([part, "?"], "here") == ("?", [document_of(part, "here")])
    assert document_of(part, "here").text == "A."


@pytest.mark.parametrize(
    "part",
    [
        {"type": "document", "source": {"type": "base64", "data": "QQ=="}},
        {"type": "text-plain", "url": "https://a"},
        {"type": "text-plain", "base64": "A", "mime_type": "text/plain"},
    ],
)
def test_documents_without_their_text(part: Any) -> None:
    with pytest.raises(
        SettingsError, match=r"here is a '.*' block without text, got the keys .*; put the document's t"
    ):
        document_of(part, "here")


def test_contexts_between_delimiters() -> None:
    assert cut_out("a <c> x </c> b <c></c>", ("<c>", "</c>"), "it") == ("a  b", ["x"])
    assert cut_out(" a ", ("<c>", "</c>"), "it") == (" a ", [])
    with pytest.raises(SettingsError, match="it opens a context with '<c>' and does not close it with '</c>'; close"):
        cut_out("<c> x", ("<c>", "</c>"), "it")


class Page:
    """A framework's own document."""

    def __init__(self, text: str) -> None:
        self.text = text


def pages(item: object, position: int) -> list[Document] | None:
    return [Document(f"{position}"), Document(item.text)] if isinstance(item, Page) else None


def test_documents_in_all_forms() -> None:
    mapping = {"page_content": "B", "id": "b", "metadata": {1: {2}, "n": float("nan"), "deep": [{"x": 1}]}}
    found = to_documents([Document("A", metadata={"at": Page}), mapping, "C", Page("D")], pages)
    assert [d.text for d in found] == ["A", "B", "C", "3", "D"]
    assert found[0].metadata == {"at": str(Page)}
    assert (found[1].id, found[1].metadata) == ("b", {"1": "{2}", "n": None, "deep": [{"x": 1}]})
    assert to_documents(None) == to_documents([]) == ()
    for one in ("A", Document("A"), {"text": "A"}, Page("A"), 3):
        with pytest.raises(
            SettingsError, match=r"`documents` must be a list of documents, got one \w+; write documents="
        ):
            to_documents(one, pages)
    with pytest.raises(SettingsError, match=r"documents\[1\] must be a page, got int; print it"):
        to_documents(["A", 3], forms="a page", remedy="print it")
