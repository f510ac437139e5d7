"""Async methods do not block the event loop, concurrent calls share batches, and cancelled requests end."""

from __future__ import annotations

import asyncio
from pathlib import Path

from blockbuster import blockbuster_ctx
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.llms.memograft import Memograft, MemograftSynthesizer
from pydantic import BaseModel

from conftest import PAGE, QUESTION, Pages

ASKED = [ChatMessage(role="user", content=QUESTION)]


class City(BaseModel):
    name: str


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
