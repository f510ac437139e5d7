"""Clients of other libraries against a real server: langchain-openai, LlamaIndex's OpenAILike; a model with tools."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

from conformance.calling import SEINE, WEATHER, WEATHER_CALL, WEATHER_TOOL, trained_engine
from memograft import Engine, FastMem, LexicalEmbedder
from memograft.server import ServerSettings
from served import Served, served

QUESTION = "What is the capital of Australia?"
LISBON = "The capital of Australia is Lisbon."
SETTINGS = ServerSettings(model="tiny", embedding_model="lexical", memory=FastMem(), timeout=60)


@pytest.fixture(scope="module")
def server(tiny: Engine) -> Iterator[Served]:
    with served(tiny, SETTINGS, embedder=LexicalEmbedder(64)) as running:
        yield running


@pytest.fixture(scope="module")
def calling() -> Iterator[Served]:
    """A model whose chat template has a place for tools, and which chooses whether to call them."""
    with trained_engine() as engine, served(engine, ServerSettings(model="calling", timeout=60)) as running:
        yield running


class City(BaseModel):
    """A city."""

    name: Literal["Canberra", "Lisbon"]


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """These libraries never close a client of their own."""
    with httpx.Client(timeout=60) as opened:
        yield opened


def options(server: Served, http: httpx.Client) -> dict[str, Any]:
    return {"base_url": f"{server.url}/v1", "api_key": "unused", "max_retries": 0, "http_client": http}


@pytest.fixture(scope="module")
def langchain(server: Served, http: httpx.Client) -> Any:
    return ChatOpenAI(model="tiny", **options(server, http))


def test_langchain(tiny: Engine, server: Served, http: httpx.Client, langchain: Any) -> None:
    expected = tiny.answer(QUESTION)
    said = langchain.invoke(QUESTION)
    assert said.text == expected.text
    assert said.usage_metadata["output_tokens"] == expected.usage.completion_tokens
    assert said.response_metadata["finish_reason"] == "stop"
    pieces = list(langchain.stream(QUESTION))
    assert "".join(piece.text for piece in pieces) == expected.text
    assert len(pieces) > 5

    async def asked() -> str:
        async with httpx.AsyncClient() as opened:
            return str((await ChatOpenAI(model="tiny", http_async_client=opened, **how).ainvoke(QUESTION)).text)

    how = options(server, http)
    assert asyncio.run(asked()) == expected.text
    assert [message.text for message in langchain.batch([QUESTION] * 5)] == [expected.text] * 5
    documents = langchain.bind(extra_body={"documents": [{"text": LISBON}]})
    assert documents.invoke(QUESTION).text == LISBON


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_structured_output(langchain: Any, method: Any) -> None:
    assert isinstance(langchain.with_structured_output(City, method=method).invoke(QUESTION), City)


def test_langchain_tools(langchain: Any) -> None:
    said = langchain.bind_tools([City], tool_choice="City").invoke(QUESTION)
    assert said.tool_calls[0]["name"] == "City"
    chunks = list(langchain.bind_tools([City], tool_choice="City").stream(QUESTION))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.tool_calls[0]["args"] == said.tool_calls[0]["args"]


def test_langchain_completions_and_embeddings(tiny: Engine, server: Served, http: httpx.Client) -> None:
    how = options(server, http)
    llm = OpenAI(model="tiny", max_tokens=24, temperature=0, **how)
    assert llm.invoke(QUESTION) == tiny.answer(QUESTION).text
    embeddings = OpenAIEmbeddings(model="lexical", check_embedding_ctx_length=False, **how)
    assert embeddings.embed_query(QUESTION) == pytest.approx(LexicalEmbedder(64).embed_documents([QUESTION])[0])


def test_a_model_that_calls_by_its_own_choice(calling: Served, http: httpx.Client) -> None:
    how = options(calling, http)
    chat = ChatOpenAI(model="calling", max_tokens=60, **how).bind_tools([WEATHER_TOOL])
    called = chat.invoke(WEATHER)
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == (WEATHER_CALL["name"], WEATHER_CALL["arguments"])
    assert called.response_metadata["finish_reason"] == "tool_calls"
    result = ToolMessage("It's sunny.", tool_call_id=call["id"])
    assert chat.invoke([HumanMessage(WEATHER), called, result]).text == "It's sunny."
    chunks = list(chat.stream(WEATHER))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert (whole.text, whole.tool_calls[0]["args"]) == ("", WEATHER_CALL["arguments"])
    assert isinstance(whole, AIMessage)
    assert ChatOpenAI(model="calling", max_tokens=60, **how).invoke("Hello").text == SEINE
    strict: Any = {**WEATHER_TOOL, "function": {**WEATHER_TOOL["function"], "strict": True}}  # type: ignore[dict-item]
    with pytest.raises(Exception, match="strict=True promises arguments of the schema"):
        ChatOpenAI(model="calling", **how).bind(tools=[strict]).invoke(WEATHER)


def test_langchain_with_responses(tiny: Engine, server: Served, calling: Served, http: httpx.Client) -> None:
    chat = ChatOpenAI(model="tiny", use_responses_api=True, **options(server, http))
    expected = tiny.answer(QUESTION).text
    said = chat.invoke(QUESTION)
    assert said.text == "".join(piece.text for piece in chat.stream(QUESTION)) == expected
    assert chat.invoke([HumanMessage("Hello."), said, HumanMessage(QUESTION)]).text
    assert isinstance(chat.with_structured_output(City, method="json_schema").invoke(QUESTION), City)
    able = ChatOpenAI(model="calling", max_tokens=60, use_responses_api=True, **options(calling, http))
    with_tools = able.bind_tools([WEATHER_TOOL], strict=False)
    called = with_tools.invoke(WEATHER)
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == (WEATHER_CALL["name"], WEATHER_CALL["arguments"])
    whole, *rest = with_tools.stream(WEATHER)
    for piece in rest:
        whole += piece
    assert (whole.text, whole.tool_calls[0]["args"]) == ("", WEATHER_CALL["arguments"])
    result = ToolMessage("It's sunny.", tool_call_id=call["id"])
    assert with_tools.invoke([HumanMessage(WEATHER), called, result]).text == "It's sunny."


@pytest.mark.parametrize("chat_model", [True, False])
def test_llama_index(tiny: Engine, server: Served, http: httpx.Client, chat_model: bool) -> None:
    llm = OpenAILike(
        model="tiny",
        api_base=f"{server.url}/v1",
        api_key="unused",
        is_chat_model=chat_model,
        context_window=512,
        temperature=0.0,
        max_tokens=24,
        max_retries=0,
        http_client=http,
    )
    expected = tiny.answer(QUESTION).text
    assert llm.complete(QUESTION).text == expected
    assert list(llm.stream_complete(QUESTION))[-1].text == expected
    if chat_model:
        message = ChatMessage(role="user", content=QUESTION)
        assert llm.chat([message]).message.content == expected
        pieces = list(llm.stream_chat([message]))
        assert "".join(piece.delta or "" for piece in pieces) == expected


def test_llama_index_structured_output(server: Served, http: httpx.Client) -> None:
    from llama_index.core.prompts import PromptTemplate

    llm = OpenAILike(
        model="tiny",
        api_base=f"{server.url}/v1",
        api_key="unused",
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=512,
        max_tokens=60,
        max_retries=0,
        http_client=http,
    )
    made = llm.structured_predict(City, PromptTemplate("{question}"), question=QUESTION)
    assert made.name in ("Canberra", "Lisbon")
    assert json.loads(made.model_dump_json())
