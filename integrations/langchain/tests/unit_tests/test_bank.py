"""A bank with named memories, LLMs and LangChain's caches; other tests are in the conformance suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conformance.pages import PAGE, QUESTION
from langchain_core.caches import InMemoryCache
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.load import dumpd
from memograft import Bank

from langchain_memograft import ChatMemograft, MemograftLLM


def reused(message: Any) -> bool:
    return bool(message.response_metadata["memograft"]["reused"])


def test_chat_models_and_llms_of_one_bank_share_it(tmp_path: Path, trained: list[int]) -> None:
    chat = ChatMemograft(model="tiny", bank=tmp_path, max_tokens=24)
    llm = MemograftLLM(model="tiny", model_kwargs={"bank": str(tmp_path)}, max_tokens=24)
    assert llm._engine_for() is chat._engine_for()
    assert not reused(chat.invoke(QUESTION, documents=[PAGE]))
    info = llm.generate([QUESTION], documents=[PAGE]).generations[0][0].generation_info
    assert info is not None
    assert info["memograft"]["reused"]
    assert trained == [1]
    assert json.dumps(dumpd(chat))


async def test_memorizing_the_same_documents_again_trains_nothing(tmp_path: Path, trained: list[int]) -> None:
    """In another object, under another name, after a restart: names belong to objects, memories to the bank."""
    handles = []
    for _ in range(2):
        chat = ChatMemograft(model="tiny", bank=tmp_path, max_tokens=24)
        other = MemograftLLM(model="tiny", bank=tmp_path, max_tokens=24)
        handles += [
            chat.memorize_documents([PAGE], "atlas"),
            await chat.amemorize_documents([PAGE], "again"),
            other.memorize_documents([PAGE]),
        ]
        assert chat.invoke(QUESTION, memory_id="again").text == chat.with_memory("atlas").invoke(QUESTION).text == PAGE
        assert reused(chat.invoke(QUESTION, documents=[PAGE]))
        with pytest.raises(
            ModelInvalidRequestError, match=r"`memory_id` must be the name of a memory of memorize_documents"
        ):
            other.invoke(QUESTION, memory_id="atlas")
        chat._engine_for().close()
    assert trained == [1]
    assert [handle.report.reused for handle in handles] == [False, *[True] * 5]
    assert len({handle.id for handle in handles}) == 1
    for engine in (handles[:3], handles[3:]):  # weights are held once, however many names they have
        assert len({id(handle.adapter) for handle in engine}) == 1


def test_weights_of_a_name_and_of_the_bank_are_the_same(tmp_path: Path) -> None:
    bank = Bank(tmp_path)
    chat = ChatMemograft(model="tiny", bank=bank, max_tokens=24)
    handle = chat.memorize_documents([PAGE], "atlas")
    held = bank.get(handle.id, chat._engine_for().with_model(lambda backbone, _: backbone))
    assert held is not None
    assert held.adapter is handle.adapter is not None
    assert bank.statistics.held == 1
    assert bank.statistics.held_bytes == handle.nbytes


def test_answers_do_not_depend_on_a_bank(tmp_path: Path) -> None:
    """So LangChain's cache can return an answer of a model without a bank."""
    cache = InMemoryCache()
    plain = ChatMemograft(model="tiny", max_tokens=24, cache=cache)
    banked = ChatMemograft(model="tiny", max_tokens=24, cache=cache, bank=tmp_path)
    assert plain._get_llm_string() == banked._get_llm_string()
    assert str(tmp_path) not in str(banked._identifying_params)
    assert plain.invoke(QUESTION, documents=[PAGE]).text == banked.invoke(QUESTION, documents=[PAGE]).text == PAGE
    assert Bank(tmp_path).entries() == []
