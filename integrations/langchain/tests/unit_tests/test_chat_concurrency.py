"""Many callers at once: mixed batches in the engine, an event loop that is never blocked, streams that are given up."""

from __future__ import annotations

import asyncio
import time

import pytest
from blockbuster import blockbuster_ctx
from langchain_core.messages import AIMessage
from memograft import Engine, FastMem

from langchain_memograft import ChatMemograft
from pages import KNOWN, OTHER, OTHER_KNOWN, OTHER_QUESTION, PAGE, QUESTION

# Each with a memory of its own, or none: (question, documents, answer).
CASES = [
    (QUESTION, [PAGE], PAGE),
    (QUESTION, [], KNOWN),
    (OTHER_QUESTION, [OTHER], OTHER),
    (OTHER_QUESTION, [PAGE], OTHER_KNOWN),
] * 4


def batches(answers: list[AIMessage]) -> int:
    """How many batches the engine ran: all rows of one report its prefill's time."""
    return len({a.response_metadata["memograft"]["milliseconds"]["prefill"] for a in answers})


async def test_sixteen_concurrent_callers_are_a_few_mixed_batches(chat: ChatMemograft) -> None:
    with blockbuster_ctx():
        answers = await asyncio.gather(*(chat.ainvoke(q, documents=d) for q, d, _ in CASES))
    assert [a.text for a in answers] == [text for _, _, text in CASES]
    assert batches(answers) <= 3


def test_a_batch_of_sixteen_is_a_few_mixed_batches(chat: ChatMemograft) -> None:
    answers = chat.batch([QUESTION, OTHER_QUESTION] * 8, documents=[PAGE])
    assert [a.text for a in answers] == [PAGE, OTHER_KNOWN] * 8
    assert batches(answers) <= 3
    assert batches(chat.batch([QUESTION] * 4, {"max_concurrency": 1})) == 4  # who asks for it gets it


async def test_abatch_is_a_few_mixed_batches(chat: ChatMemograft) -> None:
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


async def test_the_loop_runs_on_while_a_model_is_loaded_and_answers() -> None:
    fresh = ChatMemograft(model="tiny", model_kwargs={"max_batch": 5}, max_tokens=24)
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(time.perf_counter())
            await asyncio.sleep(0.001)

    ticking = asyncio.create_task(tick())
    with blockbuster_ctx():
        answers = await asyncio.gather(*(fresh.ainvoke(QUESTION) for _ in range(4)))
    ticking.cancel()
    assert {a.text for a in answers} == {KNOWN}
    assert len(ticks) > 5


async def test_a_cancelled_task_gives_its_request_up(chat: ChatMemograft, tiny: Engine) -> None:
    task = asyncio.create_task(chat.ainvoke(QUESTION, max_tokens=400, temperature=2.0, memory=FastMem(steps=10)))
    await asyncio.sleep(0)  # it has begun, and no answer can come before the loop turns again
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await chat.ainvoke(QUESTION)).text == KNOWN


async def test_a_stream_that_is_left_is_given_up(chat: ChatMemograft) -> None:
    stream = chat.astream(QUESTION, documents=[PAGE])
    async for chunk in stream:
        assert chunk.text
        break
    await stream.aclose()  # type: ignore[attr-defined]
    pieces = chat.stream(QUESTION, documents=[PAGE])
    assert next(pieces).text
    pieces.close()  # type: ignore[attr-defined]
    assert chat.invoke(QUESTION, documents=[PAGE]).text == PAGE


def test_an_engine_that_is_closed_under_a_stream() -> None:
    engine = Engine.from_pretrained("tiny")
    stream = ChatMemograft.from_engine(engine, memory=None).stream(QUESTION)
    assert next(stream).text
    engine.close()  # finishes what runs
    assert "".join(chunk.text for chunk in stream)
