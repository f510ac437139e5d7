"""The eight endpoints: what they say, that they say the same, and what their responses carry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole
from llama_index.llms.memograft import Memograft
from memograft.memory.fastmem.relevance import AUTO

from conftest import MEMORIZED, OTHER, PAGE, PLAIN, QUESTION

PARIS = "The capital of France is Paris."
FRANCE = "What is the capital of France?"


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def joined(responses: Iterator[Any]) -> tuple[str, list[Any]]:
    """(all deltas, all responses)."""
    found = list(responses)
    return "".join(r.delta or "" for r in found), found


async def ajoined(responses: AsyncIterator[Any]) -> tuple[str, list[Any]]:
    found = [r async for r in responses]
    return "".join(r.delta or "" for r in found), found


async def every_endpoint(llm: Memograft, question: str, **kwargs: Any) -> list[str]:
    """The answer of each of the eight."""
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


async def test_documents_are_memorized_at_every_endpoint(llm: Memograft) -> None:
    assert await every_endpoint(llm, QUESTION, documents=[PAGE]) == [MEMORIZED] * 8


async def test_without_a_memory_every_endpoint_answers_plainly(plain: Memograft) -> None:
    assert await every_endpoint(plain, QUESTION, documents=[PAGE]) == [PLAIN] * 8


def test_a_response_has_counts_and_facts(llm: Memograft) -> None:
    response = llm.chat([user(QUESTION)], documents=[PAGE, OTHER])
    assert isinstance(response, ChatResponse)
    assert response.message.role == MessageRole.ASSISTANT
    facts = response.additional_kwargs
    assert facts["prompt_tokens"] > facts["completion_tokens"] > 0
    assert facts["total_tokens"] == facts["prompt_tokens"] + facts["completion_tokens"]
    assert response.raw is not None
    assert response.raw["usage"]["completion_tokens"] == facts["completion_tokens"]
    assert (response.raw["model"], response.raw["finish_reason"]) == ("tiny", "stop")
    about = facts["memograft"]
    first, second = about["documents"]
    assert (about["memorized"], about["left_out"]) == ([first], [second])
    assert about["relevance"][0] > AUTO > about["relevance"][1]
    assert about["loss_after"] < about["loss_before"]
    assert (about["rolled_back"], about["reason"], about["dropped"]) == (False, None, [])


def test_the_report_has_the_same_keys_with_and_without_a_memory(llm: Memograft, plain: Memograft) -> None:
    with_one, without = (m.complete(QUESTION, documents=[PAGE]).additional_kwargs["memograft"] for m in (llm, plain))
    assert with_one.keys() == without.keys() >= {"reused", "warnings", "kl", "milliseconds", "references"}
    assert (with_one["reused"], with_one["warnings"], without["memorized"], without["kl"]) == (False, [], [], None)
    assert len(with_one["memorized"]) == 1


def test_a_completion_has_them_too(llm: Memograft) -> None:
    response = llm.complete(QUESTION, documents=[PAGE])
    assert isinstance(response, CompletionResponse)
    assert response.additional_kwargs["completion_tokens"] > 0
    assert len(response.additional_kwargs["memograft"]["memorized"]) == 1


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


async def test_streams_are_the_same_in_async(llm: Memograft) -> None:
    there = joined(llm.stream_complete(FRANCE))[1]
    here = (await ajoined(await llm.astream_complete(FRANCE)))[1]
    assert [(r.text, r.delta) for r in here] == [(r.text, r.delta) for r in there]


def test_a_conversation(llm: Memograft) -> None:
    messages = [
        user(FRANCE),
        ChatMessage(role="assistant", content=PARIS),
        user("What is the capital of Italy?"),
    ]
    assert "Rome" in str(llm.chat(messages))


def test_two_system_and_two_human_turns_in_a_row(plain: Memograft, seen: Any) -> None:
    messages = [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="system", content="Be kind."),
        user("I have a question."),
        user(FRANCE),
        ChatMessage(role="assistant", content=PARIS),
        user("What is the capital of Italy?"),
        user("Only the name."),
    ]
    assert plain.chat(messages).message.content
    assert [(m["role"], m["content"]) for m in seen.last.messages] == [
        ("system", "Be brief.\n\nBe kind."),
        ("user", f"I have a question.\n\n{FRANCE}"),
        ("assistant", PARIS),
        ("user", "What is the capital of Italy?\n\nOnly the name."),
    ]


@pytest.mark.parametrize(
    "roles",
    [["assistant", "user"], ["user", "system", "user"], ["user", "assistant"], ["system"], ["developer", "user"]],
    ids="-".join,
)
def test_odd_orders_of_messages(plain: Memograft, roles: list[str]) -> None:
    messages = [ChatMessage(role=role, content=f"Number {n}.") for n, role in enumerate(roles)]
    assert plain.chat(messages).message.content is not None


def test_no_messages(plain: Memograft) -> None:
    with pytest.raises(ValueError, match="a request needs a `question` or at least one message, got neither"):
        plain.chat([])


def test_a_name_of_a_message_does_no_harm(plain: Memograft) -> None:
    message = ChatMessage(role="user", content=FRANCE, additional_kwargs={"name": "Ada"})
    assert plain.chat([message]).message.content == PARIS


def test_stop_by_call_and_by_setting(plain: Memograft) -> None:
    assert plain.complete(FRANCE, stop=[" Paris"]).text == "The capital of France is"
    assert joined(plain.stream_complete(FRANCE, stop=" Paris"))[0] == "The capital of France is"
    assert Memograft.from_engine(plain.engine, stop=[" is"]).complete(FRANCE).text == "The capital of France"


def test_max_tokens_by_call_and_by_setting(random_llm: Memograft) -> None:
    response = random_llm.complete("Who?")
    assert response.additional_kwargs["completion_tokens"] == 12
    assert response.additional_kwargs["finish_reason"] == "length"
    assert random_llm.complete("Who?", max_tokens=3).additional_kwargs["completion_tokens"] == 3


def test_a_seed_repeats(random_llm: Memograft) -> None:
    wild = {"temperature": 1.5, "top_p": 0.95, "top_k": 50}
    one, two, other = (random_llm.complete("Who?", seed=seed, **wild).text for seed in (7, 7, 8))
    assert one == two != other


def test_temperature_zero_is_greedy(random_llm: Memograft) -> None:
    assert len({random_llm.complete("Who?").text for _ in range(3)}) == 1


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


def test_a_time_limit(random_llm: Memograft) -> None:
    with pytest.raises(TimeoutError, match="timeout"):
        random_llm.complete("Who?", max_tokens=200, timeout=1e-4)


def test_unknown_arguments_are_refused_by_name(plain: Memograft) -> None:
    with pytest.raises(ValueError, match=r"`max_token` is no argument of Memograft; did you mean `max_tokens`\?"):
        plain.complete("Who?", max_token=3)
    with pytest.raises(ValueError, match="`xyzzy` is no argument of Memograft; there are max_tokens, temperature"):
        plain.chat([user("Who?")], xyzzy=1)


def test_values_out_of_range_are_refused(plain: Memograft) -> None:
    with pytest.raises(ValueError, match="`temperature` must be 0"):
        plain.complete("Who?", temperature=-1)
    with pytest.raises(ValueError, match='`overflow` must be "error", "drop" or "truncate"'):
        plain.complete("Who?", overflow="shrug")
    with pytest.raises(ValueError, match=r"`memory` must be FastMem\(...\), a handle of Engine.memorize, or None"):
        plain.complete("Who?", memory="yes")


def test_a_memory_by_call(plain: Memograft) -> None:
    from memograft import FastMem

    assert plain.complete(QUESTION, documents=[PAGE], memory=FastMem()).text == MEMORIZED


def test_a_kept_memory(plain: Memograft) -> None:
    handle = plain.memorize([PAGE])
    for response in (plain.complete(QUESTION, memory=handle), plain.chat([user(QUESTION)], memory=handle)):
        assert response.additional_kwargs["memograft"]["memory_id"] == handle.id
        assert response.additional_kwargs["cached_tokens"] > 0
    assert plain.complete(QUESTION, memory=handle).text == MEMORIZED
    always = Memograft.from_engine(plain.engine, memory=handle)
    assert always.complete(QUESTION).text == MEMORIZED
    assert always.complete(QUESTION, memory=None, documents=[PAGE]).text == PLAIN


async def test_a_kept_memory_in_async(plain: Memograft) -> None:
    handle = await plain.amemorize([PAGE])
    assert (await plain.acomplete(QUESTION, memory=handle)).text == MEMORIZED


async def test_many_calls_at_once_say_what_each_says_alone(llm: Memograft, random_llm: Memograft) -> None:
    questions = [f"What is the capital of {land}?" for land in ("France", "Italy", "Spain", "Norway")]
    pages = [f"{question[12:-1].capitalize()} is Oslo." for question in questions]
    alone = [llm.complete(q, documents=[p]).text for q, p in zip(questions, pages, strict=True)]
    together = await asyncio.gather(*(llm.acomplete(q, documents=[p]) for q, p in zip(questions, pages, strict=True)))
    assert [r.text for r in together] == alone
    wild = {"temperature": 1.0, "top_p": 0.9}
    alone = [random_llm.complete(q, seed=n, **wild).text for n, q in enumerate(questions)]
    together = await asyncio.gather(*(random_llm.acomplete(q, seed=n, **wild) for n, q in enumerate(questions)))
    assert [r.text for r in together] == alone
