"""Prompts of LangChain's chains with documents in the text: these are memorized, or there is a warning."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from conformance.pages import OTHER, PAGE, QUESTION
from langchain_classic.chains import RetrievalQA
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.chains.question_answering import stuff_prompt
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from memograft.chat import unmemorized

from langchain_memograft import ChatMemograft, MemograftLLM, _stuffed

LONG = "The atlas of the southern seas was printed in Lisbon in the year 1712, and nobody has read it since then."


class Fixed(BaseRetriever):
    """A retriever that returns the same two pages for every question."""

    def _get_relevant_documents(self, query: str, **_: Any) -> list[Document]:
        return [Document(PAGE), Document(OTHER)]


class Kept(BaseCallbackHandler):
    """A callback handler that records the report of each answer."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []

    def on_llm_end(self, response: Any, **_: Any) -> None:
        generation = response.generations[0][0]
        message = getattr(generation, "message", None)
        self.reports.append((message.response_metadata if message else generation.generation_info)["memograft"])


@pytest.fixture(autouse=True)
def unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmemorized, "_warned", False)


@pytest.mark.parametrize("kind", [ChatMemograft, MemograftLLM])
def test_retrieval_qa_as_it_comes_memorizes_what_it_retrieved(kind: Any) -> None:
    kept = Kept()
    chain = RetrievalQA.from_chain_type(kind(model="tiny", max_tokens=24), retriever=Fixed())
    answer = chain.invoke({"query": QUESTION}, {"callbacks": [kept]})
    assert answer["result"] == PAGE
    (report,) = kept.reports
    assert len(report["documents"]) == 2
    assert len(report["memorized"]) == 1  # the other one is about something else


def test_a_stuffed_chain_with_a_template_of_langchain_memorizes(chat: ChatMemograft) -> None:
    for prompt in (
        PromptTemplate.from_template(stuff_prompt.prompt_template),
        ChatPromptTemplate.from_messages([("system", stuff_prompt.system_template), ("human", "{question}")]),
    ):
        kept = Kept()
        chain = create_stuff_documents_chain(chat, prompt)
        asked = {"question": QUESTION, "context": [Document(PAGE), Document(OTHER)]}
        assert chain.invoke(asked, {"callbacks": [kept]}) == PAGE
        assert len(kept.reports[0]["memorized"]) == 1


def test_the_instruction_of_a_system_template_stays() -> None:
    stuffed = stuff_prompt.system_template.format(context=PAGE)
    (system, human), (document,) = _stuffed.taken_out([SystemMessage(stuffed), HumanMessage(QUESTION)])
    assert system.text == stuffed.partition("\n---")[0]
    assert human.text == QUESTION
    assert document.text == PAGE


def test_a_prompt_of_ones_own_that_holds_a_context_warns_once(chat: ChatMemograft) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "Answer from the context:\n\n{context}"), ("human", "{q}")])
    chain = create_stuff_documents_chain(chat, prompt)
    asked = {"q": QUESTION, "context": [Document(LONG)]}
    with pytest.warns(UserWarning, match=r"read and not memorized; use create_memograft_documents_chain"):
        chain.invoke(asked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chain.invoke(asked)
