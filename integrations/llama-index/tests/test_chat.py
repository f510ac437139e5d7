"""The eight endpoints: they give the same answers, and their responses have the metadata."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole
from llama_index.llms.memograft import Memograft

from conftest import OTHER, PAGE, QUESTION

PARIS = "The capital of France is Paris."
FRANCE = "What is the capital of France?"


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def joined(responses: Iterator[Any]) -> tuple[str, list[Any]]:
    """All deltas, and all responses."""
    found = list(responses)
    return "".join(r.delta or "" for r in found), found


async def ajoined(responses: AsyncIterator[Any]) -> tuple[str, list[Any]]:
    found = [r async for r in responses]
    return "".join(r.delta or "" for r in found), found


async def every_endpoint(llm: Memograft, question: str, **kwargs: Any) -> list[str]:
    """The answer of each of the eight endpoints."""
    messages = [user(question)]
    return [
        str(llm.chat(messages, **kwargs).message.content),
        (await llm.achat(messages, **kwargs)).message.content or "",
        joined(llm.stream_chat(messages, **kwargs))[0],
        (await ajoined(await llm.astream_chat(messages, **kwargs)))[0],
        llm.complete(question, **kwargs).text,
        (await llm.acomplete(question, **kwargs)).text,
        joined(llm.stream_complete(question, **kwargs))[0],
        (await ajoined(await llm.astream_complete(question, **kwargs)))[0],
    ]


async def test_all_endpoints_say_the_same(llm: Memograft) -> None:
    assert await every_endpoint(llm, FRANCE) == [PARIS] * 8


def test_a_response_has_counts_and_facts(llm: Memograft) -> None:
    response = llm.chat([user(QUESTION)], documents=[PAGE, OTHER])
    assert isinstance(response, ChatResponse)
    assert response.message.role == MessageRole.ASSISTANT
    facts = response.additional_kwargs
    assert response.raw is not None
    assert response.raw["usage"]["completion_tokens"] == facts["completion_tokens"]
    assert (response.raw["model"], response.raw["finish_reason"]) == ("tiny", "stop")
    assert len(facts["memograft"]["memorized"]) == 1
    completion = llm.complete(QUESTION, documents=[PAGE, OTHER])
    assert isinstance(completion, CompletionResponse)
    assert {**completion.additional_kwargs, "memograft": None} == {**facts, "memograft": None}


def test_a_stream_grows(llm: Memograft) -> None:
    text, responses = joined(llm.stream_chat([user(FRANCE)]))
    assert text == PARIS
    assert len(responses) > 3
    so_far = ""
    for response in responses:
        so_far += response.delta
        assert response.message.content == so_far
    assert [r.raw is not None for r in responses] == [False] * (len(responses) - 1) + [True]
    assert responses[-1].additional_kwargs["completion_tokens"] > 0


def test_logprobs(random_llm: Memograft) -> None:
    response = random_llm.chat([user("Who?")], logprobs=2)
    assert response.logprobs is not None
    assert len(response.logprobs) == response.additional_kwargs["completion_tokens"]
    for first, *others in response.logprobs:
        assert 1 <= len(others) <= 2  # the chosen one is the likeliest here, and is not said twice
        assert all(first.logprob >= other.logprob for other in others)
        assert first.bytes == list(first.token.encode())
    assert random_llm.chat([user("Who?")]).logprobs is None
    assert random_llm.complete("Who?", logprobs=0).logprobs is not None
