"""The context becomes documents, once, in every response mode and in the chat engines."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate, RichPromptTemplate
from llama_index.core.prompts.chat_prompts import TEXT_QA_SYSTEM_PROMPT
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.llms.memograft import Memograft
from memograft.chat import split_context

from conftest import MEMORIZED, OTHER, PAGE, PLAIN, QUESTION, Pages, Seen

MODES = ["compact", "refine", "tree_summarize", "accumulate", "compact_accumulate", "simple_summarize"]


def contents(seen: Seen) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in seen.last.messages]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_hands_over_its_context(llm: Memograft, seen: Seen, mode: str, streaming: bool) -> None:
    """Fails if LlamaIndex passes its context through other prompt variables than this package extracts."""
    if streaming and "accumulate" in mode:
        pytest.skip("LlamaIndex streams no accumulation")
    engine = RetrieverQueryEngine.from_args(Pages(PAGE), llm=llm, response_mode=mode, streaming=streaming)
    response = engine.query(QUESTION)
    text = str(response)
    assert MEMORIZED in text
    assert seen.documents == [PAGE]
    assert contents(seen) == [("user", QUESTION)]  # the question stays the question
    assert seen.prompt.count(PAGE) == 1  # and the page stands there once
    assert [node.node.node_id for node in response.source_nodes] == ["page-1"]


@pytest.mark.parametrize("mode", MODES)
async def test_every_mode_in_async(llm: Memograft, seen: Seen, mode: str) -> None:
    engine = RetrieverQueryEngine.from_args(Pages(PAGE), llm=llm, response_mode=mode)
    assert MEMORIZED in str(await engine.aquery(QUESTION))
    assert seen.documents == [PAGE]


@pytest.mark.parametrize("mode", ["compact", "tree_summarize", "simple_summarize"])
def test_nodes_that_were_packed_are_told_apart_again(llm: Memograft, seen: Seen, mode: str) -> None:
    engine = RetrieverQueryEngine.from_args(Pages(OTHER, PAGE), llm=llm, response_mode=mode)
    assert str(engine.query(QUESTION)) == MEMORIZED
    assert seen.documents == [OTHER, PAGE]


def test_without_a_memory_it_is_ordinary_rag(plain: Memograft, seen: Seen) -> None:
    assert str(RetrieverQueryEngine.from_args(Pages(PAGE), llm=plain).query(QUESTION)) == PLAIN
    assert seen.documents == [PAGE]


def test_modes_without_a_context(llm: Memograft, seen: Seen) -> None:
    assert (
        str(RetrieverQueryEngine.from_args(Pages(PAGE), llm=llm, response_mode="generation").query(QUESTION)) == PLAIN
    )
    assert seen.documents == []


def test_a_refined_answer_is_what_is_left_if_the_context_is_about_something_else(llm: Memograft, seen: Seen) -> None:
    engine = RetrieverQueryEngine.from_args(Pages(PAGE, OTHER), llm=llm, response_mode="refine")
    assert str(engine.query(QUESTION)) == MEMORIZED
    assert [len(batch) for batch in seen.batches] == [1, 1]
    assert seen.documents == [OTHER, MEMORIZED]
    assert seen.last.documents[-1].id == "existing answer"
    assert contents(seen) == [("user", QUESTION)]


@pytest.mark.parametrize("kind", [ContextChatEngine, CondensePlusContextChatEngine])
def test_chat_engines(llm: Memograft, seen: Seen, kind: Any) -> None:
    engine = kind.from_defaults(retriever=Pages(PAGE, OTHER), llm=llm)
    assert str(engine.chat(QUESTION)) == MEMORIZED
    assert seen.documents == [PAGE, OTHER]
    assert contents(seen) == [("user", QUESTION)]
    assert "Anselk" in str(engine.chat("Who is the mayor of Velmora?")) or len(engine.chat_history) == 4
    assert contents(seen) == [
        ("user", QUESTION),
        ("assistant", MEMORIZED),
        ("user", "Who is the mayor of Velmora?"),
    ]
    assert seen.prompt.count(PAGE) == 1


@pytest.mark.parametrize("kind", [ContextChatEngine, CondensePlusContextChatEngine])
async def test_chat_engines_in_async_and_streaming(llm: Memograft, seen: Seen, kind: Any) -> None:
    assert str(await kind.from_defaults(retriever=Pages(PAGE), llm=llm).achat(QUESTION)) == MEMORIZED
    streamed = kind.from_defaults(retriever=Pages(PAGE), llm=llm).stream_chat(QUESTION)
    assert "".join(streamed.response_gen) == MEMORIZED
    response = await kind.from_defaults(retriever=Pages(PAGE), llm=llm).astream_chat(QUESTION)
    assert "".join([token async for token in response.async_response_gen()]) == MEMORIZED
    assert seen.documents == [PAGE]


def test_a_system_prompt_of_the_users_stays(llm: Memograft, seen: Seen) -> None:
    engine = ContextChatEngine.from_defaults(retriever=Pages(PAGE), llm=llm, system_prompt="Be brief.")
    assert str(engine.chat(QUESTION))
    assert contents(seen) == [("system", "Be brief."), ("user", QUESTION)]
    llm = llm.model_copy(update={"system_prompt": "Be kind."})
    RetrieverQueryEngine.from_args(Pages(PAGE), llm=llm).query(QUESTION)
    assert contents(seen) == [("system", "Be kind."), ("user", QUESTION)]


def test_a_chat_engine_without_context_is_left_alone(llm: Memograft, seen: Seen) -> None:
    assert str(SimpleChatEngine.from_defaults(llm=llm).chat(QUESTION)) == PLAIN
    assert seen.documents == []


def test_a_template_of_ones_own_is_kept_word_for_word(llm: Memograft, seen: Seen) -> None:
    template = PromptTemplate("Pages: {context_str}\nIn one sentence: {query_str}")
    engine = RetrieverQueryEngine.from_args(Pages(PAGE), llm=llm, text_qa_template=template)
    engine.query(QUESTION)
    assert contents(seen) == [("user", f"Pages: (the documents)\nIn one sentence: {QUESTION}")]
    assert seen.documents == [PAGE]


def test_the_stock_system_prompt_in_ones_own_template_is_kept(llm: Memograft, seen: Seen) -> None:
    mine = ChatMessage(role="user", content="{context_str} {query_str}")
    template = ChatPromptTemplate(message_templates=[TEXT_QA_SYSTEM_PROMPT, mine])
    RetrieverQueryEngine.from_args(Pages(PAGE), llm=llm, text_qa_template=template).query(QUESTION)
    assert [role for role, _ in contents(seen)] == ["system", "user"]
    assert contents(seen)[0][1] == TEXT_QA_SYSTEM_PROMPT.content


@pytest.mark.parametrize(
    "template", [PromptTemplate("{query_str}"), RichPromptTemplate("{{ context_str }}\n{{ query_str }}")]
)
def test_templates_that_place_the_context_otherwise(llm: Memograft, seen: Seen, template: Any) -> None:
    RetrieverQueryEngine.from_args(Pages(PAGE), llm=llm, text_qa_template=template).query(QUESTION)
    assert seen.documents == [PAGE]
    assert seen.prompt.count(PAGE) == 1


def test_variables_of_other_names(llm: Memograft, seen: Seen) -> None:
    template = PromptTemplate(
        "{pages} {question}", template_var_mappings={"context_str": "pages", "query_str": "question"}
    )
    RetrieverQueryEngine.from_args(Pages(PAGE), llm=llm, text_qa_template=template).query(QUESTION)
    assert contents(seen) == [("user", f"(the documents) {QUESTION}")]
    assert seen.documents == [PAGE]


def test_braces_in_a_page_are_text(llm: Memograft, seen: Seen) -> None:
    page = "A set is written {a, b}, and {query_str} is no question."
    RetrieverQueryEngine.from_args(Pages(page), llm=llm).query(QUESTION)
    assert seen.documents == [page]


def test_multimodal_synthesis_of_texts(llm: Memograft, seen: Seen) -> None:
    synthesizer = get_response_synthesizer(llm=llm, response_mode="compact", multimodal=True)
    synthesizer.synthesize(QUESTION, Pages(PAGE).retrieve(QUESTION))
    assert seen.documents == [PAGE]
    assert seen.prompt.count(PAGE) == 1


def test_multimodal_synthesis_of_an_image_is_refused(llm: Memograft) -> None:
    prompt = RichPromptTemplate(
        '{% chat role="user" %}{% for m in context_messages %}{% for block in m.blocks %}'
        "{{ block.inline_url() | image }}{% endfor %}{% endfor %}{{ query_str }}{% endchat %}"
    )
    picture = ChatMessage(role=MessageRole.USER, blocks=[ImageBlock(url="data:image/png;base64,AAAA")])
    with pytest.raises(RuntimeError, match=r"is an image .* a local language model reads text"):
        llm.predict(prompt, context_messages=[picture], query_str=QUESTION)


def test_settings_llm(llm: Memograft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "_llm", llm)
    assert Settings.llm is llm
    assert str(RetrieverQueryEngine.from_args(Pages(PAGE)).query(QUESTION)) == MEMORIZED


@pytest.mark.parametrize("streaming", [False, True])
def test_a_context_that_is_too_long_is_no_empty_response(llm: Memograft, caplog: Any, streaming: bool) -> None:
    """LlamaIndex's Refine would take a ValueError for a malformed answer, and continue without one."""
    narrow = llm.model_copy(update={"context_window": 4000})
    engine = RetrieverQueryEngine.from_args(Pages(" ".join([PAGE] * 60)), llm=narrow, streaming=streaming)
    with caplog.at_level(logging.CRITICAL), pytest.raises(Exception, match="tokens") as raised:
        str(engine.query(QUESTION))
    assert isinstance(raised.value, RuntimeError) or streaming
    assert str(RetrieverQueryEngine.from_args(Pages(PAGE), llm=narrow).query(QUESTION)) == MEMORIZED


def test_a_retriever_that_raises(llm: Memograft) -> None:
    class Broken(Pages):
        def _retrieve(self, query_bundle: Any) -> Any:
            raise ConnectionError("the index is away")

    for make in (RetrieverQueryEngine.from_args, ContextChatEngine.from_defaults):
        engine = make(retriever=Broken(), llm=llm)
        with pytest.raises(ConnectionError, match="the index is away"):
            engine.query(QUESTION) if hasattr(engine, "query") else engine.chat(QUESTION)


def test_a_retriever_that_finds_nothing(llm: Memograft, seen: Seen) -> None:
    assert str(RetrieverQueryEngine.from_args(Pages(), llm=llm).query(QUESTION)) == "Empty Response"
    assert seen.batches == []


def test_metadata_of_nodes_is_told_apart_from_them(llm: Memograft, seen: Seen) -> None:
    pages = Pages(OTHER, PAGE)
    for node in pages.nodes:
        node.metadata = {"file_path": "/docs/a.txt"}
    assert str(RetrieverQueryEngine.from_args(pages, llm=llm).query(QUESTION)) == MEMORIZED
    assert seen.documents == ["file_path: /docs/a.txt", OTHER, "file_path: /docs/a.txt", PAGE]


def test_contexts_are_split_at_blank_lines() -> None:
    def texts(context: str, **how: bool) -> list[str]:
        return [document.text for document in split_context(context, **how)]

    assert texts("One.\nTwo.\n\nThree!\n \nFour?") == ["One.\nTwo.", "Three!", "Four?"]
    assert texts("file_path: a.txt\n\nOne.") == ["file_path: a.txt", "One."]
    assert texts(" \n\n ") == []
    assert texts("One line\nbroken.\nTwo.\n\nfile: a\n\nThree", by_line=True) == [
        "One line\nbroken.",
        "Two.",
        "file: a",
        "Three",
    ]
