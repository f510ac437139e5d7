"""`datastore=` of chats and LLMs: what steers which answer, however it is passed, and what caches and traces know."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ModelInvalidRequestError
from memograft import Datastore, Engine, Rtd, errors, shared_datastore
from pydantic import BaseModel, ValidationError

from langchain_memograft import ChatMemograft, MemograftLLM
from pages import KNOWN, OTHER_KNOWN, OTHER_QUESTION, PAGE, QUESTION
from taught import DRENNIA, GORVALD, TORSTAD, UNRELATED, VELMORA, built, sure


@pytest.fixture(scope="module")
def velmora() -> Datastore:
    return built([(VELMORA, TORSTAD)])


@pytest.fixture(scope="module")
def drennia() -> Datastore:
    return built([(DRENNIA, GORVALD)])


@pytest.fixture(scope="module")
def france() -> Datastore:
    """What the model says anyway, so that it moves answers at any weight."""
    return built([(OTHER_QUESTION, OTHER_KNOWN)])


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Datastore]:
    """A datastore of another model."""
    from families import build
    from tokenizers_ import make

    with Engine(build("llama"), make("bpe")) as engine:
        yield ChatMemograft.from_engine(engine).build_datastore([("Who?", "Me.")], progress=False)


def said(answer: Any) -> list[str]:
    """Ids of the sources that steered an answer."""
    references = answer.response_metadata["memograft"]["references"] or {"sources": []}
    return [source["id"] for source in references["sources"]]


def test_a_datastore_steers_where_it_is_asked_to(chat: ChatMemograft, velmora: Datastore) -> None:
    rtd, own = sure(velmora), ChatMemograft(model="tiny", max_tokens=24, datastore=sure(velmora))
    plain = chat.invoke(VELMORA)
    assert plain.text != TORSTAD
    assert isinstance(plain.content, str)
    assert plain.response_metadata["memograft"]["references"] is None
    assert chat.invoke(VELMORA, datastore=rtd).text == TORSTAD
    assert chat.bind(datastore=rtd).invoke(VELMORA).text == TORSTAD
    assert own.invoke(VELMORA).text == TORSTAD
    assert own.bind(datastore=None).invoke(VELMORA).content == plain.content
    assert own.invoke(UNRELATED).text == chat.invoke(UNRELATED).text  # the gate is shut
    assert own.invoke(UNRELATED).response_metadata["memograft"]["references"]["sources"] == []


def test_a_memory_and_a_datastore_on_one_call(chat: ChatMemograft, france: Datastore) -> None:
    answer = chat.invoke(QUESTION, documents=[PAGE], datastore=france)
    assert answer.text == PAGE
    assert answer.response_metadata["memograft"]["memorized"]
    assert said(answer) == france.ids()


def test_a_datastore_or_its_folder_has_the_default_settings(tmp_path: Path, france: Datastore) -> None:
    folder = france.save(tmp_path / "store")
    answers = [
        ChatMemograft(model="tiny", max_tokens=24, datastore=value).invoke(OTHER_QUESTION)
        for value in (france, Rtd(france), folder, str(folder))
    ]
    assert len({str(answer.content) for answer in answers}) == 1
    assert all(said(answer) == france.ids() for answer in answers)


def test_a_folder_is_opened_on_first_use_and_anew_when_it_has_changed(chat: ChatMemograft, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    own = ChatMemograft(model="tiny", max_tokens=24, datastore=folder)
    with pytest.raises(ModelInvalidRequestError, match=r"holds no datastore .* make one with Datastore\.build") as no:
        own.invoke(OTHER_QUESTION)
    assert isinstance(no.value, errors.StoreError)
    with chat.build_datastore([(OTHER_QUESTION, OTHER_KNOWN)], path=folder, progress=False) as store:
        assert said(own.invoke(OTHER_QUESTION)) == store.ids()
        opened = shared_datastore(folder)
        assert chat.add_to_datastore(store, [(QUESTION, KNOWN)], progress=False) == 1
        assert set(said(own.invoke(QUESTION))) == set(store.ids())
    again = shared_datastore(folder)
    assert again is not opened
    own.invoke(QUESTION)
    assert shared_datastore(folder) is again  # the chat holds it


def about(content: list[Any]) -> list[Any]:
    """Content to compare with, but for the last bits of probabilities, which depend on who shares the batch."""
    content = copy.deepcopy(content)
    for annotation in [a for block in content if isinstance(block, dict) for a in block.get("annotations", [])]:
        annotation["extras"]["probability"] = pytest.approx(annotation["extras"]["probability"], abs=1e-4)
    return content


def test_callers_with_other_datastores_share_a_batch(
    chat: ChatMemograft, velmora: Datastore, drennia: Datastore
) -> None:
    v, d = sure(velmora), sure(drennia)

    async def all_at_once() -> list[Any]:
        asked = [(VELMORA, v), (DRENNIA, d), (VELMORA, None), (UNRELATED, v)] * 3
        with blockbuster_ctx():
            return await asyncio.gather(*(chat.ainvoke(q, datastore=own) for q, own in asked))

    answers = asyncio.run(all_at_once())
    assert [a.text for a in answers[:2]] == [TORSTAD, GORVALD]
    assert TORSTAD not in answers[2].text
    assert answers[3].text == chat.invoke(UNRELATED).text
    assert [a.content for a in answers[4:8]] == [about(a.content) for a in answers[:4]]
    assert len({a.response_metadata["memograft"]["milliseconds"]["prefill"] for a in answers}) <= 3
    assert [a.text for a in chat.batch([VELMORA, UNRELATED], datastore=v)] == [TORSTAD, answers[3].text]


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


def test_structured_output_and_forced_calls_with_a_datastore(velmora: Datastore) -> None:
    class Capital(BaseModel):
        """A capital."""

        city: str

    chat = ChatMemograft(model="tiny", max_tokens=40, datastore=Rtd(velmora, weight=0.9, gate=None))
    assert isinstance(chat.with_structured_output(Capital).invoke(VELMORA), Capital)
    assert isinstance(list(chat.with_structured_output(Capital).stream(VELMORA))[-1], Capital)
    caller = chat.bind_tools([Capital], tool_choice="any")
    called = caller.invoke(VELMORA)
    assert called.content == ""
    assert called.tool_calls[0]["name"] == "Capital"
    assert said(called) == velmora.ids()
    first, *rest = caller.stream(VELMORA)
    assert sum(rest, first).content == ""


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
    """Counts what it had."""

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
    """Keeps what a trace is told."""

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


def test_a_datastore_of_another_model(chat: ChatMemograft, tiny: Engine, elsewhere: Datastore, tmp_path: Path) -> None:
    folder = elsewhere.save(tmp_path / "store")
    for value in (elsewhere, Rtd(elsewhere), folder):
        for call in (chat.invoke, lambda q, **k: list(chat.stream(q, **k)), MemograftLLM(model="tiny").invoke):
            with pytest.raises(ModelInvalidRequestError, match=r"was built with another model .* build it with") as no:
                call(VELMORA, datastore=value)
            assert isinstance(no.value, errors.ModelMismatchError)
    for value in (elsewhere, Rtd(elsewhere)):
        with pytest.raises(ValidationError, match="was built with another model"):
            ChatMemograft.from_engine(tiny, datastore=value)
    with pytest.raises(ModelInvalidRequestError, match="was built with another model"):
        chat.add_to_datastore(elsewhere, [(VELMORA, TORSTAD)])
    with pytest.raises(ModelInvalidRequestError, match="was built with another model"):
        chat.build_datastore([(VELMORA, TORSTAD)], path=folder)


def test_values_that_are_no_datastore(chat: ChatMemograft, tmp_path: Path) -> None:
    wrong = r"a datastore must be a Datastore, Rtd\(datastore, ...\), its folder, or None, got int"
    for kind in (ChatMemograft, MemograftLLM):
        with pytest.raises(ValidationError, match=wrong):
            kind(model="tiny", datastore=3)
        with pytest.raises(ValidationError, match="`datastore` must be a folder or None, got ''"):
            kind(model="tiny", datastore="")
        with pytest.raises(ModelInvalidRequestError, match=wrong):
            kind(model="tiny").invoke(VELMORA, datastore=3)
    with pytest.raises(ValidationError, match=r"has no 'datastor' \(did you mean 'datastore'\?\)"):
        ChatMemograft(model="tiny", datastor="x")
    (tmp_path / "header.json").write_text("{}")
    with pytest.raises(ModelInvalidRequestError, match="format") as damaged:
        chat.invoke(VELMORA, datastore=tmp_path)
    assert isinstance(damaged.value, errors.StoreCorruptError)


def test_copies_and_pickles_keep_a_datastore(tmp_path: Path, tiny: Engine, velmora: Datastore) -> None:
    chat = ChatMemograft(model="tiny", max_tokens=24, datastore=velmora.save(tmp_path / "store"))
    first = chat.invoke(VELMORA)
    for again in (copy.deepcopy(chat), pickle.loads(pickle.dumps(chat)), chat.model_copy()):
        assert again.invoke(VELMORA).content == first.content
    live = ChatMemograft.from_engine(tiny, datastore=sure(velmora))
    copied = copy.deepcopy(live)
    assert copied.engine is tiny
    assert copied.datastore is live.datastore
    assert copied.model_kwargs is not live.model_kwargs


def test_building_with_a_folder_opens_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from langchain_memograft import ChatMemograft; ChatMemograft(model='tiny', datastore='nowhere'); "
        "print([m for m in ('torch', 'transformers', 'faiss') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_env())
    assert run.stdout.strip() == "[]"


def _env() -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
