"""`datastore=` of chat models and LLMs, as a field and as an argument, in caches and in traces."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from conformance.pages import DRENNIA, GORVALD, OTHER_KNOWN, OTHER_QUESTION, TORSTAD, VELMORA
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ModelInvalidRequestError
from memograft import Datastore, Engine, Rtd

from langchain_memograft import ChatMemograft, MemograftLLM
from taught import UNRELATED, built, sure


@pytest.fixture(scope="module")
def velmora() -> Datastore:
    return built([(VELMORA, TORSTAD)])


@pytest.fixture(scope="module")
def drennia() -> Datastore:
    return built([(DRENNIA, GORVALD)])


@pytest.fixture(scope="module")
def france() -> Datastore:
    """A datastore with the model's own answer, which contributes at any weight."""
    return built([(OTHER_QUESTION, OTHER_KNOWN)])


def said(answer: Any) -> list[str]:
    """Ids of the sources of an answer."""
    references = answer.response_metadata["memograft"]["references"] or {"sources": []}
    return [source["id"] for source in references["sources"]]


async def test_opening_a_folder_never_blocks_the_loop(tmp_path: Path, france: Datastore) -> None:
    chat = ChatMemograft(model="tiny", max_tokens=24, datastore=france.save(tmp_path / "a"))
    llm = MemograftLLM(model="tiny", max_tokens=24, datastore=str(france.save(tmp_path / "b")))
    other, streamed, known = france.save(tmp_path / "c"), france.save(tmp_path / "d"), france.ids()
    with blockbuster_ctx():
        whole = await chat.ainvoke(OTHER_QUESTION)
        assert said(whole) == known
        assert "".join([c.text async for c in chat.astream(OTHER_QUESTION, datastore=streamed)]) == OTHER_KNOWN
        answers = await chat.abatch([OTHER_QUESTION] * 3, datastore=other)
        assert [said(answer) for answer in answers] == [known] * 3
        assert await llm.ainvoke(OTHER_QUESTION) == OTHER_KNOWN
        assert "".join([c async for c in llm.astream(OTHER_QUESTION, datastore=other)]) == OTHER_KNOWN
        store = await chat.abuild_datastore([(DRENNIA, GORVALD)], progress=False)
        assert await chat.aadd_to_datastore(store, [(VELMORA, TORSTAD)], progress=False) == 1
        assert (await chat.ainvoke(VELMORA, datastore=sure(store))).text == TORSTAD
        assert isinstance((await chat.ainvoke(VELMORA, datastore=store)).content, list)


async def test_a_temporary_datastore_dropped_in_a_loop_never_blocks_it() -> None:
    def drop() -> Path:
        cycle: list[Any] = [built([(VELMORA, TORSTAD)])]
        cycle.append(cycle)  # only the garbage collector finds it
        return cycle[0].path

    gc.disable()  # until the loop runs it
    try:
        await asyncio.to_thread(gc.collect)  # what other tests have left
        folder = await asyncio.to_thread(drop)
        assert folder.exists()
        with blockbuster_ctx():
            gc.collect()
    finally:
        gc.enable()
    for removal in [thread for thread in threading.enumerate() if thread.name == "memograft-remove"]:
        await asyncio.to_thread(removal.join)
    assert not folder.exists()


async def test_an_engine_dropped_in_a_loop_never_blocks_it() -> None:
    def drop() -> threading.Thread:
        engine = Engine.from_pretrained("tiny")
        engine.answer("Hello!")
        cycle: list[Any] = [engine]
        cycle.append(cycle)
        thread: threading.Thread = engine._worker._thread  # type: ignore[assignment]
        return thread

    gc.disable()
    try:
        await asyncio.to_thread(gc.collect)
        thread = await asyncio.to_thread(drop)
        with blockbuster_ctx():
            gc.collect()
    finally:
        gc.enable()
    await asyncio.to_thread(thread.join)


def test_llms_are_steered_in_one_batch(velmora: Datastore) -> None:
    llm = MemograftLLM(model="tiny", max_tokens=24, datastore=sure(velmora))
    result = llm.generate([VELMORA, UNRELATED])
    assert result.generations[0][0].text == TORSTAD
    first, second = (g[0].generation_info for g in result.generations)
    assert first is not None
    assert second is not None
    prefills = {info["memograft"]["milliseconds"]["prefill"] for info in (first, second)}
    assert len(prefills) == 1  # one batch
    assert [a["cited_text"] for a in first["annotations"]] == [TORSTAD]
    assert second["annotations"] == second["memograft"]["references"]["sources"] == []
    assert [r["id"] for r in first["memograft"]["references"]["sources"]] == velmora.ids()
    off = llm.generate([VELMORA], datastore=None).generations[0][0]
    assert off.text != TORSTAD
    assert off.generation_info is not None
    assert "annotations" not in off.generation_info
    pieces = list(llm.stream(VELMORA))
    assert "".join(pieces) == TORSTAD


class Counting(InMemoryCache):
    """A cache that counts its hits."""

    hits = 0

    def lookup(self, prompt: str, llm_string: str) -> Any:
        found = super().lookup(prompt, llm_string)
        self.hits += found is not None
        return found


def test_the_cache_knows_datastores(tmp_path: Path, velmora: Datastore, drennia: Datastore) -> None:
    cache = Counting()
    chat = ChatMemograft(model="tiny", max_tokens=24, cache=cache)

    def hit(**given: Any) -> bool:
        before = cache.hits
        chat.invoke(VELMORA, **given)
        return cache.hits > before

    for given in ({}, {"datastore": sure(velmora)}, {"datastore": velmora}, {"datastore": Rtd(velmora, k=1)}):
        assert (hit(**given), hit(**given)) == (False, True)
    assert not hit(datastore=drennia)
    assert chat.invoke(VELMORA, datastore=sure(velmora)).text == TORSTAD
    folder = tmp_path / "store"
    with chat.build_datastore([(DRENNIA, GORVALD)], path=folder, progress=False) as store:
        assert (hit(datastore=folder), hit(datastore=str(folder))) == (False, True)
        chat.add_to_datastore(store, [(VELMORA, TORSTAD)], progress=False)
        assert not hit(datastore=folder)  # there is more in it now


@pytest.mark.parametrize("kind", [ChatMemograft, MemograftLLM])
def test_a_folder_that_changed_is_no_hit(kind: Any, chat: ChatMemograft, tmp_path: Path) -> None:
    cache, folder = Counting(), tmp_path / "store"
    with chat.build_datastore([(DRENNIA, GORVALD)], path=folder, progress=False) as store:
        own = kind(model="tiny", max_tokens=24, cache=cache, datastore=folder)
        own.invoke(VELMORA)
        own.invoke(VELMORA)
        assert cache.hits == 1
        chat.add_to_datastore(store, [(VELMORA, TORSTAD)], progress=False)
        own.invoke(VELMORA)
        assert cache.hits == 1


class Told(BaseCallbackHandler):
    """A callback handler that records the parameters for traces."""

    def __init__(self) -> None:
        self.params: list[Any] = []
        self.failed: list[BaseException] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        json.dumps([serialized, kwargs["invocation_params"], kwargs["options"]])
        self.params.append(kwargs["invocation_params"]["datastore"])

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.failed.append(error)


def test_traces_are_told_in_json(chat: ChatMemograft, tmp_path: Path, velmora: Datastore) -> None:
    told, folder = Told(), velmora.save(tmp_path / "store")
    for given in ({}, {"datastore": velmora}, {"datastore": sure(velmora)}, {"datastore": folder}):
        chat.invoke(VELMORA, {"callbacks": [told]}, **given)
        list(chat.stream(VELMORA, {"callbacks": [told]}, **given))
    none, _, bare, _, settings, _, opened, streamed = told.params
    assert none is None
    assert bare.items() >= {"folder": velmora.path.name, "entries": len(velmora), "weight": 0.3, "k": 32}.items()
    assert settings == {**bare, "weight": 0.9}
    assert (opened["folder"], opened["entries"]) == ("store", len(velmora))
    assert opened["version"] != bare["version"]
    assert streamed == str(folder)
    assert "datastore" in MemograftLLM(model="tiny", datastore=velmora)._identifying_params
    with pytest.raises(ModelInvalidRequestError):
        chat.invoke(VELMORA, {"callbacks": [told]}, datastore=tmp_path / "nothing")
    assert len(told.failed) == 1
