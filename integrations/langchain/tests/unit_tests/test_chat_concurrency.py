"""Concurrent calls: batches in the engine, async methods that do not block, and cancelled streams."""

from __future__ import annotations

import pytest
from blockbuster import blockbuster_ctx
from conformance.pages import KNOWN, OTHER_KNOWN, OTHER_QUESTION, PAGE, QUESTION
from langchain_core.messages import AIMessage

from langchain_memograft import ChatMemograft

# Each with a memory of its own, or none: (question, documents, answer).


def batches(answers: list[AIMessage]) -> int:
    """How many groups were prepared together; all answers of a group report the same prefill time."""
    return len({a.response_metadata["memograft"]["milliseconds"]["prefill"] for a in answers})


def test_a_batch_of_sixteen_is_a_few_mixed_batches(chat: ChatMemograft, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patient:
        patient.setattr("memograft.serving.queue._GATHER", 2)  # waits even if requests arrive slowly
        answers = chat.batch([QUESTION, OTHER_QUESTION] * 8, documents=[PAGE])
    assert [a.text for a in answers] == [PAGE, OTHER_KNOWN] * 8
    assert batches(answers) <= 3
    assert batches(chat.batch([QUESTION] * 4, {"max_concurrency": 1})) == 4  # who asks for it gets it


async def test_abatch_is_a_few_mixed_batches(chat: ChatMemograft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memograft.serving.queue._GATHER", 2)  # waits even if requests arrive slowly
    answers = await chat.abatch([QUESTION] * 16, documents=[PAGE])
    assert [a.text for a in answers] == [PAGE] * 16
    assert batches(answers) <= 3


def test_a_batch_says_what_single_runs_say(chat: ChatMemograft) -> None:
    hot = chat.bind(temperature=1.5, seed=3)
    single = [hot.invoke(q).text for q in (QUESTION, OTHER_QUESTION)]
    assert [a.text for a in hot.batch([QUESTION, OTHER_QUESTION])] == single


def test_an_error_in_a_batch_is_its_own(chat: ChatMemograft) -> None:
    results = chat.batch([QUESTION, [], QUESTION], return_exceptions=True)  # type: ignore[list-item]
    assert [isinstance(r, Exception) for r in results] == [False, True, False]


async def test_nothing_blocks_the_loop(chat: ChatMemograft) -> None:
    with blockbuster_ctx():
        assert (await chat.ainvoke(QUESTION, documents=[PAGE])).text == PAGE
        assert "".join([c.text async for c in chat.astream(QUESTION, documents=[PAGE])]) == PAGE
        handle = await chat.amemorize_documents([PAGE])
        assert (await chat.with_memory(handle).ainvoke(QUESTION)).text == PAGE
        fresh = ChatMemograft.from_engine(chat._engine_for(), max_tokens=24)
        assert (await fresh.ainvoke(QUESTION)).text == KNOWN
