"""Async is async: the loop is never blocked, concurrent calls share batches, and giving up gives up."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.llms.memograft import Memograft, MemograftSynthesizer
from memograft import Engine, FastMem, Sampling
from pydantic import BaseModel

from conftest import PAGE, QUESTION, Pages, Seen

ASKED = [ChatMessage(role="user", content=QUESTION)]


class City(BaseModel):
    name: str


async def test_no_endpoint_blocks_the_loop(llm: Memograft) -> None:
    with blockbuster_ctx():
        await llm.achat(ASKED, documents=[PAGE])
        await llm.acomplete(QUESTION, documents=[PAGE])
        assert [r async for r in await llm.astream_chat(ASKED, documents=[PAGE])]
        assert [r async for r in await llm.astream_complete(QUESTION)]
        await llm.amemorize([PAGE])


async def test_no_prompt_blocks_the_loop(llm: Memograft) -> None:
    prompt, args = PromptTemplate("{query_str}"), {"query_str": QUESTION, "context_str": PAGE}
    llm.structured_predict(City, prompt, **args)  # the first JSON imports llguidance
    with blockbuster_ctx():
        assert await llm.apredict(prompt, **args)
        assert [r async for r in await llm.astream(prompt, **args)]
        await llm.astructured_predict(City, prompt, **args)
        assert [r async for r in await llm.astream_structured_predict(City, prompt, **args)]


async def test_no_synthesizer_blocks_the_loop(tmp_path: Path) -> None:
    llm, pages = Memograft(model="tiny", bank=tmp_path, max_tokens=32), Pages(PAGE)
    with blockbuster_ctx():  # the stock synthesizers block it themselves, while they count tokens
        query_engine = RetrieverQueryEngine(pages, MemograftSynthesizer(llm))
        assert str(await query_engine.aquery(QUESTION)) == str(await query_engine.aquery(QUESTION))


async def test_a_model_is_loaded_beside_the_loop() -> None:
    llm, other = (Memograft(model="tiny", max_tokens=4, model_kwargs={"max_batch": 3}) for _ in range(2))
    assert llm._engine is None
    with blockbuster_ctx():
        assert (await llm.acomplete("What is the capital of France?")).text
        assert await other.apredict(PromptTemplate("{query_str}"), query_str="What is the capital of France?")
    assert other.engine is llm.engine
    await asyncio.to_thread(llm.engine.close)


async def test_sixteen_calls_at_once_are_mixed_batches(
    llm: Memograft, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memograft.serving.queue._GATHER", 2)  # however slowly they come
    plain = llm.model_copy(update={"memory": None})
    calls = [(llm if n % 2 else plain).achat(ASKED, documents=[PAGE], max_tokens=8 + n) for n in range(16)]
    responses = await asyncio.gather(*calls)
    sizes = [len(batch) for batch in seen.batches]
    assert sum(sizes) == 16
    assert len(sizes) <= 4, f"sixteen calls ran as {len(sizes)} batches of {sizes}"
    assert any(len({work.request.memory is None for work in batch}) == 2 for batch in seen.batches)
    assert ["Lisbon" in str(r) for r in responses] == [bool(n % 2) for n in range(16)]


async def test_the_loop_goes_on_meanwhile(random_llm: Memograft) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    ticking = asyncio.create_task(tick())
    await random_llm.acomplete("Who?", max_tokens=60)
    ticking.cancel()
    assert ticks > 2


async def given_up(engine: Engine, seen: Seen) -> None:
    """Wait until the engine is idle again, and see that it did not say all it could have said."""
    answer = await asyncio.wait_for(engine.aanswer("Who?", sampling=Sampling(4)), 20)
    assert answer.text
    assert len(seen.batches) == 2


async def test_a_cancelled_call_is_given_up(random_llm: Memograft, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Seen(random_llm.engine, monkeypatch)
    task = asyncio.create_task(random_llm.achat(ASKED, max_tokens=150))
    while not watch.batches:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await given_up(random_llm.engine, watch)


async def test_a_stream_that_is_left_is_given_up(random_llm: Memograft, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Seen(random_llm.engine, monkeypatch)
    stream = await random_llm.astream_chat(ASKED, max_tokens=150)
    async for response in stream:
        assert response.delta
        break
    await stream.aclose()
    await given_up(random_llm.engine, watch)


def test_a_stream_that_is_left_is_given_up_in_a_thread_too(random_llm: Memograft, monkeypatch: Any) -> None:
    watch = Seen(random_llm.engine, monkeypatch)
    for stream in (random_llm.stream_chat(ASKED, max_tokens=150), random_llm.stream_complete("Who?", max_tokens=150)):
        assert next(stream).delta
        stream.close()
    assert random_llm.complete("Who?", max_tokens=2).text
    assert len(watch.batches) <= 3


async def test_an_engine_that_closes_while_it_is_asked() -> None:
    engine = Engine.from_pretrained("tiny")
    llm = Memograft.from_engine(engine, memory=FastMem())
    calls = [asyncio.create_task(llm.achat(ASKED, documents=[PAGE])) for _ in range(4)]
    await asyncio.sleep(0)
    await asyncio.to_thread(engine.close)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(r, RuntimeError) or "Lisbon" in str(r) for r in results)
    with pytest.raises(RuntimeError, match="the engine is closed"):
        await llm.achat(ASKED)
    with pytest.raises(RuntimeError, match="the engine is closed"):
        next(llm.stream_complete("Who?"))
