"""`MemograftMiddleware` in agents with the bundled model, which does not choose tools."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from typing import Annotated, Any

import pytest
from blockbuster import BlockBuster
from langchain.agents import create_agent
from langchain.tools import InjectedState
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from memograft import Document as MemograftDocument
from memograft import FastMem
from pydantic import BaseModel

from langchain_memograft import ChatMemograft, MemograftMiddleware, MemograftVectorStore

AUSTRALIA = "What is the capital of Australia?"
FRANCE = "What is the capital of France?"
LISBON = "The capital of Australia is Lisbon."
CANBERRA = "The capital of Australia is Canberra."
OSLO = "The capital of France is Oslo."
PAGES = [
    Document(LISBON, id="a", metadata={"source": "atlas"}),
    Document(OSLO, id="f", metadata={"source": "atlas"}),
    Document("Bergamot is a citrus fruit.", id="b", metadata={"source": "herbal"}),
]


class Pages(BaseRetriever):
    """A retriever of pages that contain the last word of the question; it records the questions."""

    asked: list[str] = []  # noqa: RUF012, a pydantic field
    awaited: int = 0
    k: int = 4

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        self.asked.append(query)
        word = query.rstrip("?").split()[-1]
        return [page for page in PAGES if word in page.page_content][: k or self.k]

    async def _aget_relevant_documents(self, query: str, *, run_manager: Any, k: int | None = None) -> list[Document]:
        self.awaited += 1
        return self._get_relevant_documents(query, run_manager=run_manager, k=k)


@pytest.fixture(scope="module")
def llm() -> ChatMemograft:
    return ChatMemograft(model="tiny", memory=FastMem())


@pytest.fixture
def search() -> BaseTool:
    @tool(response_format="content_and_artifact")
    def search(state: Annotated[dict[str, Any], InjectedState]) -> tuple[str, list[Document]]:
        """Search the atlas for pages about the user's question."""
        question = next(m.text for m in reversed(state["messages"]) if m.type == "human")
        pages = Pages().invoke(question)
        return f"{len(pages)} pages", pages

    return search


def ask(text: str = AUSTRALIA) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


# with a retriever ------------------------------------------------------------------------------------------------


def test_retrieved_documents_are_memorized_and_shown(llm: ChatMemograft) -> None:
    agent = create_agent(llm, middleware=[MemograftMiddleware(retriever=Pages())])
    result = agent.invoke(ask())
    assert result["messages"][-1].text == LISBON
    assert result["messages"][-1].response_metadata["memograft"]["memorized"] == ["a"]
    assert result["context"] == PAGES[:1]  # the user's own documents, with all they had
    assert "context_of" not in result


async def test_async_retrieves_by_the_async_method(llm: ChatMemograft) -> None:
    retriever = Pages()
    agent = create_agent(llm, middleware=[MemograftMiddleware(retriever=retriever)])
    result = await agent.ainvoke(ask())
    assert result["messages"][-1].text == LISBON
    assert result["context"] == PAGES[:1]
    assert (retriever.awaited, retriever.asked) == (1, [AUSTRALIA])


def test_without_the_middleware_it_is_the_models(llm: ChatMemograft) -> None:
    assert create_agent(llm).invoke(ask())["messages"][-1].text == CANBERRA


def test_any_store_is_a_retriever(llm: ChatMemograft) -> None:
    store = MemograftVectorStore()
    store.add_documents(PAGES)
    agent = create_agent(llm, middleware=[MemograftMiddleware(retriever=store.as_retriever(), k=1)])
    result = agent.invoke(ask())
    assert result["messages"][-1].text == LISBON
    assert [page.id for page in result["context"]] == ["a"]


def test_any_runnable_is_a_retriever(llm: ChatMemograft) -> None:
    agent = create_agent(llm, middleware=[MemograftMiddleware(retriever=RunnableLambda(lambda _: PAGES), k=1)])
    result = agent.invoke(ask())
    assert result["messages"][-1].text == LISBON
    assert result["context"] == PAGES[:1]


def test_k_is_the_retrievers_or_ours() -> None:
    state: Any = {"messages": [HumanMessage("What do we know of Australia, or is it a fruit?", id="1")]}

    def found(**settings: Any) -> int:
        return len((MemograftMiddleware(**settings).before_model(state, None) or {})["context"])  # type: ignore[arg-type]

    everything = RunnableLambda(lambda _: PAGES)
    assert found(retriever=everything) == 3
    assert found(retriever=everything, k=2) == 2
    state["messages"] = [HumanMessage("is", id="1")]  # all pages hold it
    assert found(retriever=Pages(k=1)) == 1
    assert found(retriever=Pages(k=1), k=3) == 3


def test_every_human_turn_has_its_own_documents(llm: ChatMemograft) -> None:
    retriever = Pages()
    agent = create_agent(llm, middleware=[MemograftMiddleware(retriever=retriever)], checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    first = agent.invoke(ask(), config)
    second = agent.invoke(ask("What is a citrus fruit?"), config)
    assert [page.id for page in first["context"]] == ["a"]
    assert [page.id for page in second["context"]] == ["b"]
    assert retriever.asked == [AUSTRALIA, "What is a citrus fruit?"]


def test_nothing_found(llm: ChatMemograft) -> None:
    agent = create_agent(llm, middleware=[MemograftMiddleware(retriever=RunnableLambda(lambda _: []))])
    result = agent.invoke(ask())
    assert result["messages"][-1].text == CANBERRA
    assert result["context"] == []


def test_tokens_are_streamed(llm: ChatMemograft) -> None:
    agent = create_agent(llm, middleware=[MemograftMiddleware(retriever=Pages())])
    pieces = [m.text for m, _ in agent.stream(ask(), stream_mode="messages") if isinstance(m, AIMessageChunk)]
    assert len(pieces) > 2
    assert "".join(pieces) == LISBON


def test_the_documents_of_another_middleware_are_kept(llm: ChatMemograft) -> None:
    seen: list[Any] = []
    middleware = MemograftMiddleware(retriever=Pages())
    request = _request(llm, model_settings={"documents": [PAGES[2]], "seed": 1}, context=PAGES[:1])
    middleware.wrap_model_call(request, lambda r: seen.append(r))  # type: ignore[arg-type, return-value, func-returns-value]
    assert seen[0].model_settings == {"documents": [PAGES[2], PAGES[0]], "seed": 1}


def _request(model: Any, model_settings: dict[str, Any], context: list[Document]) -> Any:
    from langchain.agents.middleware import ModelRequest

    message = HumanMessage(AUSTRALIA, id="1")
    state: Any = {"messages": [message], "context": context}
    return ModelRequest(model=model, messages=[message], state=state, model_settings=model_settings)


# with tools ------------------------------------------------------------------------------------------------------


def test_a_whole_agent_loop(llm: ChatMemograft, search: BaseTool) -> None:
    agent = create_agent(llm, tools=[search], middleware=[MemograftMiddleware(tool_choice="search")])
    result = agent.invoke(ask())
    _human, call, found, answer = result["messages"]
    assert call.tool_calls == [{"name": "search", "args": {}, "id": call.tool_calls[0]["id"], "type": "tool_call"}]
    assert isinstance(found, ToolMessage)
    assert found.artifact == PAGES[:1]
    assert answer.text == LISBON
    assert answer.response_metadata["memograft"]["memorized"] == ["a"]
    assert result["context"] == PAGES[:1]


async def test_a_whole_agent_loop_async(llm: ChatMemograft, search: BaseTool) -> None:
    agent = create_agent(llm, tools=[search], middleware=[MemograftMiddleware(tool_choice="search")])
    result = await agent.ainvoke(ask())
    assert [type(m) for m in result["messages"]] == [HumanMessage, AIMessage, ToolMessage, AIMessage]
    assert result["messages"][-1].text == LISBON
    assert result["context"] == PAGES[:1]


def test_an_agent_loop_in_every_human_turn(llm: ChatMemograft, search: BaseTool) -> None:
    agent = create_agent(
        llm, tools=[search], middleware=[MemograftMiddleware(tool_choice="any")], checkpointer=InMemorySaver()
    )
    config: Any = {"configurable": {"thread_id": "1"}}
    first = agent.invoke(ask(FRANCE), config)
    second = agent.invoke(ask(AUSTRALIA), config)
    assert [m.type for m in second["messages"]] == ["human", "ai", "tool", "ai"] * 2
    assert [first["messages"][-1].text, second["messages"][-1].text] == [OSLO, LISBON]
    assert [first["context"], second["context"]] == [PAGES[1:2], PAGES[:1]]


async def test_the_event_loop_is_never_blocked(llm: ChatMemograft, search: BaseTool, blockbuster: BlockBuster) -> None:
    sources = MemograftMiddleware(retriever=Pages(), tool_choice="search")
    agent = create_agent(llm, tools=[search], middleware=[sources])
    result = await agent.ainvoke(ask())
    assert result["messages"][-1].text == LISBON


def test_an_agent_loop_is_streamed(llm: ChatMemograft, search: BaseTool) -> None:
    agent = create_agent(llm, tools=[search], middleware=[MemograftMiddleware(tool_choice="search")])
    steps = [step for update in agent.stream(ask(), stream_mode="updates") for step in update]
    assert [step for step in steps if step in ("model", "tools")] == ["model", "tools", "model"]


def test_the_model_writes_the_arguments(llm: ChatMemograft) -> None:
    asked: list[tuple[str, int]] = []

    @tool(response_format="content_and_artifact")
    def search(query: str, k: int) -> tuple[str, list[Document]]:
        """Search the atlas."""
        asked.append((query, k))
        return "", PAGES[:1]

    agent = create_agent(llm, tools=[search], middleware=[MemograftMiddleware(tool_choice="search")])
    result = agent.invoke(ask())
    assert isinstance(asked[0][0], str)
    assert isinstance(asked[0][1], int)
    assert result["messages"][-1].text == LISBON


class Capital(BaseModel):
    """A capital."""

    known: bool


def test_an_answer_of_a_schema(llm: ChatMemograft, search: BaseTool) -> None:
    agent = create_agent(
        llm, tools=[search], middleware=[MemograftMiddleware(tool_choice="search")], response_format=Capital
    )
    result = agent.invoke(ask())
    assert [m.type for m in result["messages"]] == ["human", "ai", "tool", "ai"]
    assert isinstance(result["structured_response"], Capital)
    assert result["messages"][-1].response_metadata["memograft"]["memorized"] == ["a"]


def test_documents_of_tools_come_back_as_they_were(llm: ChatMemograft) -> None:
    page = Document(LISBON, metadata={"read": date(2026, 11, 21)})

    @tool(response_format="content_and_artifact")
    def look() -> tuple[str, Any]:
        """Look it up."""
        return "2 pages", [page, MemograftDocument("Bergamot is a citrus fruit.", "b"), "no document", page]

    result = create_agent(llm, tools=[look], middleware=[MemograftMiddleware(tool_choice="look")]).invoke(ask())
    assert result["messages"][-1].text == LISBON
    assert result["context"] == [page, Document("Bergamot is a citrus fruit.", id="b")]


def test_retriever_and_tools_together(llm: ChatMemograft) -> None:
    @tool(response_format="content_and_artifact")
    def herbs(state: Annotated[dict[str, Any], InjectedState]) -> tuple[str, list[Document]]:
        """Search the herbal."""
        return "2 pages", [PAGES[0], PAGES[2]]

    agent = create_agent(llm, tools=[herbs], middleware=[MemograftMiddleware(retriever=Pages(), tool_choice="herbs")])
    result = agent.invoke(ask())
    assert [page.id for page in result["context"]] == ["a", "b"]  # what both found stands there once
    about = result["messages"][-1].response_metadata["memograft"]
    assert about["documents"] == ["a", "b"]
    assert result["messages"][-1].text == LISBON


def test_a_tool_that_does_not_exist(llm: ChatMemograft, search: BaseTool) -> None:
    agent = create_agent(llm, tools=[search], middleware=[MemograftMiddleware(tool_choice="find")])
    with pytest.raises(ModelInvalidRequestError, match=r"'find', and the tools are \['search'\]"):
        agent.invoke(ask())


# errors ----------------------------------------------------------------------------------------------------------


def test_a_retriever_that_fails(llm: ChatMemograft) -> None:
    def broken(_: str) -> list[Document]:
        raise ConnectionError("the index is away")

    agent = create_agent(llm, middleware=[MemograftMiddleware(retriever=RunnableLambda(broken))])
    with pytest.raises(ConnectionError, match="the index is away"):
        agent.invoke(ask())


async def test_a_retriever_that_fails_async(llm: ChatMemograft) -> None:
    def broken(_: str) -> list[Document]:
        raise ConnectionError("the index is away")

    agent = create_agent(llm, middleware=[MemograftMiddleware(retriever=RunnableLambda(broken))])
    with pytest.raises(ConnectionError, match="the index is away"):
        await agent.ainvoke(ask())


@pytest.mark.parametrize("found", [None, LISBON, 3])
def test_a_retriever_that_finds_no_list(found: Any, llm: ChatMemograft) -> None:
    agent = create_agent(llm, middleware=[MemograftMiddleware(retriever=RunnableLambda(lambda _: found))])
    with pytest.raises(ModelInvalidRequestError, match=r"must return a list of documents, got (NoneType|str|int)"):
        agent.invoke(ask())


def test_a_retriever_that_finds_no_documents(llm: ChatMemograft) -> None:
    agent = create_agent(llm, middleware=[MemograftMiddleware(retriever=RunnableLambda(lambda _: [3]))])
    with pytest.raises(ModelInvalidRequestError, match=r"documents\[0\] must be a LangChain Document"):
        agent.invoke(ask())


def test_documents_given_twice(llm: ChatMemograft) -> None:
    agent = create_agent(llm, middleware=[MemograftMiddleware(retriever=Pages())])
    message = HumanMessage(AUSTRALIA, additional_kwargs={"documents": PAGES[:1]})
    with pytest.raises(ModelInvalidRequestError, match="pass them once"):
        agent.invoke({"messages": [message]})


def test_a_model_that_takes_no_documents() -> None:
    agent = create_agent(FakeListChatModel(responses=["Canberra"]), middleware=[MemograftMiddleware(retriever=Pages())])
    with pytest.raises(ModelInvalidRequestError, match=r"got FakeListChatModel, which does not take them; remove"):
        agent.invoke(ask())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retriever": MemograftVectorStore}, r"`retriever` must be a retriever.*`\.as_retriever\(\)`"),
        ({"retriever": Pages(), "k": 0}, r"`k` must be a whole number of at least 1.*got 0"),
        ({"retriever": Pages(), "k": True}, r"`k` must be a whole number of at least 1.*got True"),
        ({"retriever": Pages(), "k": "3"}, r"`k` must be a whole number of at least 1.*got '3'"),
        ({"k": 3}, r"`k` is the number of documents from the retriever, got 3 without one; pass `retriever`"),
        ({"tool_choice": ""}, r"`tool_choice` must be the name of a tool, \"any\" or None, got ''"),
        ({"tool_choice": ["search"]}, r"`tool_choice` must be the name of a tool, \"any\" or None, got \['search'\]"),
    ],
)
def test_settings_that_can_never_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemograftMiddleware(**settings)


def test_langchain_is_only_needed_for_agents() -> None:
    code = """
import sys
sys.modules["langchain"] = None
from langchain_memograft import create_memograft_documents_chain
try:
    from langchain_memograft import MemograftMiddleware
except ImportError as e:
    print(type(e).__name__, e)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == (
        "MissingExtraError MemograftMiddleware needs the agents of langchain, which is not installed; "
        "pip install 'langchain-memograft[agents]'"
    )
