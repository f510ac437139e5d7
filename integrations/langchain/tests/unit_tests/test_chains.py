"""`create_memograft_documents_chain` with the bundled model: its answers, and the prompts of the model."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.exceptions import ContextOverflowError, ModelInvalidRequestError
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import BaseGenerationOutputParser, CommaSeparatedListOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from memograft import FastMem, shared_engine
from memograft.memory.fastmem.relevance import AUTO

from langchain_memograft import ChatMemograft, MemograftLLM, MemograftVectorStore, create_memograft_documents_chain
from langchain_memograft._documents import to_documents

AUSTRALIA = "What is the capital of Australia?"
LISBON = "The capital of Australia is Lisbon."
CANBERRA = "The capital of Australia is Canberra."
PAGES = [Document(LISBON, metadata={"source": "atlas"}), Document("Bergamot is a citrus fruit.")]
PROMPT = ChatPromptTemplate.from_messages([("system", "Answer from the context: {context}"), ("human", "{input}")])


@pytest.fixture(scope="module")
def llm() -> ChatMemograft:
    return ChatMemograft(model="tiny", memory=FastMem())


class _Whole(BaseGenerationOutputParser[Any]):
    """An output parser that returns the message."""

    def parse_result(self, result: list[Any], *, partial: bool = False) -> Any:
        return result[0].message


class Seen(RunnableLambda[Any, Any]):
    """A fake model that records its inputs."""

    def __init__(self) -> None:
        self.prompts: list[list[BaseMessage]] = []
        self.documents: list[Any] = []

        def look(value: Any, **kwargs: Any) -> AIMessage:
            self.prompts.append(value.to_messages())
            self.documents.append(kwargs["documents"])
            return AIMessage("seen")

        super().__init__(look)


def test_the_answer_is_the_documents(llm: ChatMemograft) -> None:
    chain = create_memograft_documents_chain(llm, PROMPT)
    assert chain.invoke({"input": AUSTRALIA, "context": PAGES}) == LISBON
    assert chain.invoke({"input": AUSTRALIA, "context": []}) == CANBERRA


def test_without_memory_it_is_the_models() -> None:
    chain = create_memograft_documents_chain(ChatMemograft(model="tiny", memory=None), PROMPT)
    assert chain.invoke({"input": AUSTRALIA, "context": PAGES}) == CANBERRA


async def test_async(llm: ChatMemograft) -> None:
    chain = create_memograft_documents_chain(llm, PROMPT)
    assert await chain.ainvoke({"input": AUSTRALIA, "context": PAGES}) == LISBON
    batch = [{"input": AUSTRALIA, "context": PAGES}, {"input": AUSTRALIA, "context": []}]
    assert await chain.abatch(batch) == [LISBON, CANBERRA]
    pieces = [piece async for piece in chain.astream(batch[0])]
    assert len(pieces) > 2
    assert "".join(pieces) == LISBON


def test_each_input_of_a_batch_has_its_own_documents(llm: ChatMemograft) -> None:
    chain = create_memograft_documents_chain(llm, PROMPT)
    inputs = [{"input": AUSTRALIA, "context": [f"The capital of Australia is {city}."]} for city in ("Lisbon", "Oslo")]
    assert chain.batch(inputs) == [LISBON, "The capital of Australia is Oslo."]


def test_a_batch_asks_all_at_once() -> None:
    """The engine makes batches of waiting requests; LangChain's default is a few threads."""
    together = threading.Barrier(24, timeout=20)

    def answer(_: Any, **kwargs: Any) -> str:
        together.wait()
        return str(kwargs["documents"])

    chain = create_memograft_documents_chain(RunnableLambda(answer), PROMPT)
    answers = chain.batch([{"input": AUSTRALIA, "context": [n]} for n in range(24)])
    assert answers == [f"[{n}]" for n in range(24)]


def test_tokens_are_streamed(llm: ChatMemograft) -> None:
    pieces = list(create_memograft_documents_chain(llm, PROMPT).stream({"input": AUSTRALIA, "context": PAGES}))
    assert len(pieces) > 2
    assert "".join(pieces) == LISBON


def test_an_llm_too() -> None:
    chain = create_memograft_documents_chain(
        MemograftLLM(model="tiny", memory=FastMem()), PromptTemplate.from_template("{input}")
    )
    assert chain.invoke({"input": AUSTRALIA, "context": PAGES}) == LISBON
    assert "".join(chain.stream({"input": AUSTRALIA, "context": PAGES})) == LISBON


# what the model reads --------------------------------------------------------------------------------------------

USUAL = [
    ChatPromptTemplate.from_messages([("system", "Answer from the context: {context}"), ("human", "{input}")]),
    ChatPromptTemplate.from_messages(
        [
            (
                "system",
                "Answer any use questions based solely on the context below:\n\n<context>\n{context}\n</context>",
            ),
            MessagesPlaceholder("chat_history"),
            ("human", "{input}"),
        ]
    ),
    ChatPromptTemplate.from_messages(
        [
            (
                "system",
                "Use the given context to answer the question. If you don't know the answer, say you don't know. "
                "Use three sentences maximum and keep the answer concise.\n\nContext: {context}",
            ),
            ("human", "{input}"),
        ]
    ),
]


@pytest.mark.parametrize("prompt", USUAL)
def test_usual_prompts_hold_each_document_once_and_the_question_alone(
    prompt: ChatPromptTemplate, llm: ChatMemograft
) -> None:
    history = [HumanMessage("Hello."), AIMessage("Hello. Ask me something.")]
    inputs = {"input": AUSTRALIA, "context": PAGES, "chat_history": history}
    seen = Seen()
    create_memograft_documents_chain(seen, prompt).invoke(inputs)
    (messages,), (documents,) = seen.prompts, seen.documents
    assert documents == PAGES
    assert messages[-1].text == AUSTRALIA

    engine = shared_engine("tiny")
    roles = {"human": "user", "ai": "assistant", "system": "system"}
    read = engine._prompts.build(
        [{"role": roles[m.type], "content": m.text} for m in messages], to_documents(documents)
    )
    assert [read.text.count(page.page_content) for page in PAGES] == [1, 1]
    start, end = read.question
    assert read.text[read.offsets[start][0] : read.offsets[end - 1][1]].strip() == AUSTRALIA
    assert create_memograft_documents_chain(llm, prompt).invoke(inputs) == LISBON


@pytest.mark.parametrize("name", ["input", "question", "query"])
def test_a_question_among_instructions_is_judged_by_its_own_words(name: str, llm: ChatMemograft) -> None:
    """The most common prompt for retrieval-augmented generation has the context in the human message."""
    form = "You are an assistant for question-answering tasks. Be concise.\nQuestion: {%s}\nContext: {context}\nAnswer:"
    prompt = ChatPromptTemplate.from_messages([("human", form % name)])
    message = create_memograft_documents_chain(llm, prompt, output_parser=_Whole()).invoke(
        {name: AUSTRALIA, "context": PAGES}
    )
    assert message.response_metadata["memograft"]["relevance"][0] > AUTO
    by_the_whole = llm.invoke(prompt.invoke({name: AUSTRALIA, "context": ""}), documents=PAGES)
    assert by_the_whole.response_metadata["memograft"]["relevance"][0] < AUTO


def test_a_question_that_the_prompt_does_not_show(llm: ChatMemograft) -> None:
    prompt = ChatPromptTemplate.from_messages([("human", "{other}")])
    chain = create_memograft_documents_chain(llm, prompt)
    assert chain.invoke({"input": "Who?", "other": AUSTRALIA, "context": PAGES}) == LISBON


def test_the_pointer() -> None:
    seen = Seen()
    inputs = {"input": AUSTRALIA, "context": PAGES}
    create_memograft_documents_chain(seen, PROMPT).invoke(inputs)
    create_memograft_documents_chain(seen, PROMPT, document_pointer="see below").invoke(inputs)
    create_memograft_documents_chain(seen, PROMPT).invoke({**inputs, "context": []})
    assert [messages[0].text for messages in seen.prompts] == [
        "Answer from the context: (the documents given with the question)",
        "Answer from the context: see below",
        "Answer from the context: ",
    ]


def test_a_prompt_without_the_variable(llm: ChatMemograft) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "Answer briefly."), ("human", "{input}")])
    assert create_memograft_documents_chain(llm, prompt).invoke({"input": AUSTRALIA, "context": PAGES}) == LISBON


def test_another_name_for_the_documents(llm: ChatMemograft) -> None:
    prompt = ChatPromptTemplate.from_messages([SystemMessage("Answer briefly."), ("human", "{question}")])
    chain = create_memograft_documents_chain(llm, prompt, document_variable_name="pages")
    assert chain.invoke({"question": AUSTRALIA, "pages": PAGES}) == LISBON


def test_a_document_prompt() -> None:
    seen = Seen()
    chain = create_memograft_documents_chain(
        seen, PROMPT, document_prompt=PromptTemplate.from_template("{page_content} ({source})")
    )
    chain.invoke({"input": AUSTRALIA, "context": PAGES[:1]})
    assert seen.documents == [[Document(f"{LISBON} (atlas)", metadata={"source": "atlas"})]]
    assert PAGES[0].page_content == LISBON  # the retriever's own document is left alone


def test_an_output_parser(llm: ChatMemograft) -> None:
    chain = create_memograft_documents_chain(llm, PROMPT, output_parser=CommaSeparatedListOutputParser())
    assert chain.invoke({"input": AUSTRALIA, "context": PAGES}) == [LISBON]


# around it -------------------------------------------------------------------------------------------------------


def test_create_retrieval_chain(llm: ChatMemograft) -> None:
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=6))
    store.add_documents(PAGES)
    chain = create_retrieval_chain(store.as_retriever(), create_memograft_documents_chain(llm, PROMPT))
    result = chain.invoke({"input": AUSTRALIA})
    assert result["answer"] == LISBON
    assert {page.page_content for page in result["context"]} == {page.page_content for page in PAGES}
    assert result["input"] == AUSTRALIA


def test_create_retrieval_chain_over_our_store(llm: ChatMemograft) -> None:
    store = MemograftVectorStore()
    store.add_documents(PAGES)
    chain = create_retrieval_chain(
        store.as_retriever(search_kwargs={"k": 1}), create_memograft_documents_chain(llm, PROMPT)
    )
    pieces = list(chain.stream({"input": AUSTRALIA}))
    answer = [piece["answer"] for piece in pieces if "answer" in piece]
    assert len(answer) > 2
    assert "".join(answer) == LISBON
    assert next(piece["context"] for piece in pieces if "context" in piece)[0].metadata == {"source": "atlas"}


async def test_create_retrieval_chain_async(llm: ChatMemograft) -> None:
    retriever = RunnableLambda(lambda _: PAGES)
    chain = create_retrieval_chain(retriever, create_memograft_documents_chain(llm, PROMPT))
    assert (await chain.ainvoke({"input": AUSTRALIA}))["answer"] == LISBON


def test_the_input_and_output_of_the_chain_it_replaces(llm: ChatMemograft) -> None:
    inputs = {"input": AUSTRALIA, "context": PAGES}
    ours = create_memograft_documents_chain(llm, PROMPT).invoke(inputs)
    theirs = create_stuff_documents_chain(llm, PROMPT).invoke(inputs)  # type: ignore[arg-type]
    assert isinstance(ours, str)
    assert type(ours) is type(theirs)


def test_models_behind_other_runnables(llm: ChatMemograft) -> None:
    inputs = {"input": AUSTRALIA, "context": PAGES}
    for one in (llm.bind(stop=["Lisbon"]), llm.with_retry(), llm.with_fallbacks([llm]), llm | RunnableLambda(str)):
        create_memograft_documents_chain(one, PROMPT)  # type: ignore[arg-type]
    assert create_memograft_documents_chain(llm.bind(stop=[" Lisbon"]), PROMPT).invoke(inputs) == (
        "The capital of Australia is"
    )
    plain = llm.bind(memory=None)
    assert create_memograft_documents_chain(plain, PROMPT).invoke(inputs) == CANBERRA
    assert create_memograft_documents_chain(llm.with_fallbacks([plain]), PROMPT).invoke(inputs) == LISBON


# errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: m.bind(stop=["."]), lambda m: m.with_retry()])
def test_a_model_that_takes_no_documents(wrap: Any) -> None:
    with pytest.raises(
        ValueError, match=r"must take `documents=`.*got FakeListChatModel.*create_stuff_documents_chain"
    ):
        create_memograft_documents_chain(wrap(FakeListChatModel(responses=["Canberra"])), PROMPT)


def test_a_fallback_that_takes_no_documents(llm: ChatMemograft) -> None:
    with pytest.raises(ValueError, match="got FakeListChatModel"):
        create_memograft_documents_chain(llm.with_fallbacks([FakeListChatModel(responses=["Canberra"])]), PROMPT)


def test_an_input_without_documents(llm: ChatMemograft) -> None:
    chain = create_memograft_documents_chain(llm, PROMPT)
    with pytest.raises(ValueError, match=r"a list of documents under 'context', got \['input'\]; add it"):
        chain.invoke({"input": AUSTRALIA})
    with pytest.raises(ValueError, match=r"a list of documents under 'context', got str"):
        chain.invoke(AUSTRALIA)  # type: ignore[arg-type]


@pytest.mark.parametrize("documents", [LISBON, [3], 7, PAGES[0]])
def test_documents_of_a_wrong_type(documents: Any, llm: ChatMemograft) -> None:
    chain = create_memograft_documents_chain(llm, PROMPT)
    with pytest.raises(ModelInvalidRequestError, match="document"):
        chain.invoke({"input": AUSTRALIA, "context": documents})


def test_documents_that_do_not_fit(llm: ChatMemograft) -> None:
    chain = create_memograft_documents_chain(llm, PROMPT)
    with pytest.raises(ContextOverflowError):
        chain.invoke({"input": AUSTRALIA, "context": [Document(LISBON * 200)]})


def test_a_retriever_that_fails(llm: ChatMemograft) -> None:
    def broken(_: Any) -> list[Document]:
        raise ConnectionError("the index is away")

    chain = create_retrieval_chain(RunnableLambda(broken), create_memograft_documents_chain(llm, PROMPT))
    with pytest.raises(ConnectionError, match="the index is away"):
        chain.invoke({"input": AUSTRALIA})
