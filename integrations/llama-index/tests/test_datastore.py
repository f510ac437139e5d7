"""A datastore as a setting and by call: in every form, at every endpoint, alone and with everything else."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import ContextChatEngine, SimpleChatEngine
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.tools import FunctionTool
from llama_index.llms.memograft import Memograft, MemograftSynthesizer
from memograft import Datastore, Engine, FastMem, Rtd, shared_datastore
from memograft.errors import ModelMismatchError, SettingsError, StoreError
from pydantic import BaseModel, ValidationError

from conftest import ASKED, MEMORIZED, OTHER, PAGE, QUESTION, TAUGHT, Pages, Seen

MESSAGES = [ChatMessage(role="user", content=ASKED)]
UNTAUGHT = "The capital of Velmorway is Jakarta."  # what tiny makes of a land that it does not know

Said = Callable[..., Any]


async def everywhere(llm: Memograft, **options: Any) -> list[str]:
    """What all eight endpoints say."""
    return [
        str(llm.chat(MESSAGES, **options).message.content),
        str((await llm.achat(MESSAGES, **options)).message.content),
        str([r.message.content for r in llm.stream_chat(MESSAGES, **options)][-1]),
        str([r.message.content async for r in await llm.astream_chat(MESSAGES, **options)][-1]),
        llm.complete(ASKED, **options).text,
        (await llm.acomplete(ASKED, **options)).text,
        [r.text for r in llm.stream_complete(ASKED, **options)][-1],
        [r.text async for r in await llm.astream_complete(ASKED, **options)][-1],
    ]


async def test_every_endpoint_is_steered_and_can_be_left_alone(
    plain: Memograft, steered: Memograft, taught: Datastore
) -> None:
    assert await everywhere(steered) == [TAUGHT] * 8
    assert await everywhere(steered, datastore=None) == [UNTAUGHT] * 8
    assert await everywhere(plain) == [UNTAUGHT] * 8
    assert await everywhere(plain, datastore=Rtd(taught, weight=0.9)) == [TAUGHT] * 8


@pytest.mark.parametrize("form", [Rtd, lambda s: s, lambda s: s.path, lambda s: str(s.path)], ids=list("rsfp"))
def test_every_form(plain: Memograft, taught: Datastore, seen: Seen, form: Said) -> None:
    given = form(taught)
    for llm, options in ((plain.model_copy(update={"datastore": given}), {}), (plain, {"datastore": given})):
        about = llm.complete(ASKED, **options).additional_kwargs["memograft"]
        assert set(about["references"]) == {"sources", "citations", "conflicts"}
        (rtd,) = seen.last.processors
        assert (rtd.k, rtd.weight, rtd.datastore.path) == (32, 0.3, taught.path)


def test_a_folder_is_opened_when_it_is_needed(plain: Memograft, tmp_path: Path) -> None:
    llm = Memograft.from_engine(plain.engine, datastore=tmp_path / "store")
    with pytest.raises(StoreError, match=r"store holds no datastore .*; make one with Datastore.build"):
        llm.complete(ASKED)
    llm.build_datastore([(ASKED, TAUGHT)], path=tmp_path / "store", progress=False).close()
    assert llm.complete(ASKED).additional_kwargs["memograft"]["references"]


def test_a_folder_is_opened_once_and_read_anew_when_it_changes(plain: Memograft, tmp_path: Path) -> None:
    with plain.build_datastore([(ASKED, "Oslo.")], path=tmp_path, progress=False):
        pass
    by_setting = plain.model_copy(update={"datastore": {"datastore": tmp_path, "weight": 0.9}})
    for llm, options in ((by_setting, {}), (plain, {"datastore": {"datastore": str(tmp_path), "weight": 0.9}})):
        assert llm.complete(ASKED, **options).text == "Oslo."
        opened = weakref.ref(shared_datastore(tmp_path))
        llm.complete("Who?", max_tokens=1, datastore=None)  # the engine has let the last batch go
        gc.collect()
        assert opened() is not None
    with Datastore.open(tmp_path) as writer:
        writer.delete(writer.ids())
        writer.add(plain.engine, [(ASKED, TAUGHT)], progress=False)
    assert by_setting.complete(ASKED).text == TAUGHT


def test_somebody_elses_datastore_is_not_held(plain: Memograft) -> None:
    store = plain.build_datastore([(ASKED, TAUGHT)], progress=False)
    folder, gone = store.path, weakref.ref(store)
    assert plain.complete(ASKED, datastore=Rtd(store, weight=0.9)).text == TAUGHT
    del store
    gc.collect()
    assert plain.complete("Who?", max_tokens=1).text  # the engine has let the last batch go
    gc.collect()
    assert gone() is None
    assert not folder.exists()


# -- what can never work --

WRONG = [3, True, "", "  ", [], object(), Datastore, {"k": 3}, {"datastore": 3}]


@pytest.mark.parametrize("value", WRONG, ids=lambda value: f"{value!r:.12}")
def test_what_is_no_datastore(plain: Memograft, value: Any) -> None:
    match = r"`datastore` must be a Datastore, Rtd\(datastore, ...\), the folder of one, or None, got .*; make one with"
    with pytest.raises(ValidationError, match=match):
        Memograft(datastore=value)
    with pytest.raises(SettingsError, match=match):
        plain.complete(ASKED, datastore=value)
    with pytest.raises(SettingsError, match=match):
        plain.model_copy(update={"datastore": value}).stream_chat(MESSAGES)


def test_settings_of_a_folder_that_can_never_work(plain: Memograft, taught: Datastore) -> None:
    with pytest.raises(ValidationError, match=r"`datastore` must hold settings of Rtd, got \['wait'\]; leave them out"):
        Memograft(datastore={"datastore": "store", "wait": 0.9})
    with pytest.raises(SettingsError, match="`weight` must be between 0 and 1, got 9"):
        plain.complete(ASKED, datastore={"datastore": str(taught.path), "weight": 9})


def test_a_misspelt_argument(plain: Memograft) -> None:
    with pytest.raises(SettingsError, match="`datastores` is no argument of Memograft; did you mean `datastore`"):
        plain.complete(ASKED, datastores=None)


async def test_a_datastore_of_another_model(plain: Memograft, random_engine: Engine, seen: Seen) -> None:
    other = Datastore.build(random_engine, [("a?", "b")], progress=False)
    match = "was built with another model .*; build it with this engine"
    for value in (other, Rtd(other)):
        with pytest.raises(ModelMismatchError, match=match):
            Memograft.from_engine(plain.engine, datastore=value)
    for value in (other, Rtd(other), other.path):
        for llm, options in ((plain, {"datastore": value}), (plain.model_copy(update={"datastore": value}), {})):
            with pytest.raises(ModelMismatchError, match=match):
                llm.complete(ASKED, **options)
            with pytest.raises(ModelMismatchError, match=match):
                llm.stream_chat(MESSAGES, **options)  # and not at its first piece
            with pytest.raises(ModelMismatchError, match=match):
                await llm.astream_complete(ASKED, **options)
    with pytest.raises(RuntimeError, match=match):  # in a prompt of a synthesizer, which swallows ValueErrors
        plain.model_copy(update={"datastore": other}).predict(PromptTemplate("{q}"), q=ASKED)
    assert seen.batches == []


# -- copies, and what is written of it --


def forms(taught: Datastore) -> list[tuple[Any, Any]]:
    """(a datastore, what is written of it)."""
    folder = str(taught.path)
    settings = {"k": 4, "temperature": 9.0, "weight": 0.9, "heads": 2, "gate": None, "distance": "plain"}
    return [
        (None, None),
        (taught, folder),
        (taught.path, folder),
        (folder, folder),
        (Rtd(taught, **settings), {"datastore": folder, **settings}),  # type: ignore[arg-type]
        ({"datastore": taught.path, "k": 4}, {"datastore": folder, "k": 4}),
    ]


def test_it_is_rebuilt_from_what_it_was_serialized_to(taught: Datastore) -> None:
    for value, written in forms(taught):
        llm = Memograft(model="tiny", memory=None, datastore=value)
        assert llm.to_dict()["datastore"] == llm.model_dump()["datastore"] == llm.to_payload()["datastore"] == written
        assert len(llm.to_json()) < 2000
        json.dumps(llm.to_payload())
        for again in (Memograft.from_json(llm.to_json()), pickle.loads(pickle.dumps(llm))):
            assert again.datastore == written
            assert (again.complete(ASKED).additional_kwargs["memograft"]["references"] is None) == (value is None)


def test_copies_share_the_datastore(plain: Memograft, taught: Datastore) -> None:
    for value in (taught, Rtd(taught, weight=0.9), {"datastore": taught.path, "weight": 0.9}):
        llm = plain.model_copy(update={"datastore": value})
        llm.complete(ASKED)
        for twin in (copy.deepcopy(llm), copy.copy(llm), llm.model_copy(deep=True)):
            assert twin.datastore is value
        assert copy.deepcopy(llm).complete(ASKED).text == llm.complete(ASKED).text


# -- together with everything else --


class City(BaseModel):
    name: str


async def test_no_endpoint_blocks_the_loop(plain: Memograft, taught: Datastore) -> None:
    given = {"datastore": str(taught.path), "weight": 0.9}
    llm = plain.model_copy(update={"datastore": given})
    with blockbuster_ctx():
        assert (await llm.achat(MESSAGES)).message.content == TAUGHT
        assert [r.text async for r in await plain.astream_complete(ASKED, datastore=given)][-1] == TAUGHT
        assert await llm.apredict(PromptTemplate("{q}"), q=ASKED) == TAUGHT
        assert str(await MemograftSynthesizer(llm).asynthesize(ASKED, Pages(OTHER).retrieve(""))) == TAUGHT


async def test_calls_with_and_without_share_batches(plain: Memograft, taught: Datastore, seen: Seen) -> None:
    rtd, fast = Rtd(taught, weight=0.9, gate=None), FastMem()  # with a page the prompt is not the one it learned
    kinds: list[tuple[str, dict[str, Any]]] = [
        (TAUGHT, {"datastore": rtd}),
        (UNTAUGHT, {}),
        (TAUGHT, {"datastore": rtd, "memory": fast, "documents": [PAGE]}),
        (plain.complete(ASKED, documents=[PAGE]).text, {"memory": fast, "documents": [PAGE]}),
    ]
    seen.batches.clear()
    responses = await asyncio.gather(*(plain.acomplete(ASKED, **options) for _, options in kinds * 3))
    assert [r.text for r in responses] == [text for text, _ in kinds * 3]
    assert len(seen.batches) <= 4
    assert any(len({bool(work.request.processors) for work in batch}) == 2 for batch in seen.batches)


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "accumulate", "simple_summarize"])
def test_response_modes(steered: Memograft, mode: str) -> None:
    engine = RetrieverQueryEngine.from_args(Pages(OTHER), llm=steered, response_mode=mode)
    assert TAUGHT in str(engine.query(ASKED))


async def test_chat_engines(steered: Memograft) -> None:
    for chat in (
        SimpleChatEngine.from_defaults(llm=steered),
        ContextChatEngine.from_defaults(retriever=Pages(OTHER), llm=steered),
    ):
        assert str(chat.chat(ASKED)) == TAUGHT
        chat.reset()
        assert "".join(chat.stream_chat(ASKED).response_gen) == TAUGHT
        chat.reset()
        assert str(await chat.achat(ASKED)) == TAUGHT


def test_with_a_memory_of_the_documents(llm: Memograft, taught: Datastore) -> None:
    llm = llm.model_copy(update={"datastore": Rtd(taught, weight=0.4)})
    response = llm.complete(QUESTION, documents=[PAGE])  # of which the datastore knows nothing
    assert response.text == MEMORIZED
    assert response.additional_kwargs["memograft"]["memorized"]
    assert response.additional_kwargs["memograft"]["references"]["citations"] == []


async def test_objects(steered: Memograft, plain: Memograft, taught: Datastore, seen: Seen) -> None:
    prompt, given = PromptTemplate("{q}"), {"datastore": Rtd(taught, weight=0.9)}
    assert isinstance(steered.structured_predict(City, prompt, q=ASKED), City)
    assert seen.last.processors
    assert isinstance(await plain.astructured_predict(City, prompt, llm_kwargs=given, q=ASKED), City)
    assert seen.last.processors
    assert isinstance(list(steered.stream_structured_predict(City, prompt, q=ASKED))[-1], City)
    assert isinstance(steered.as_structured_llm(City).complete(ASKED).raw, City)
    assert seen.last.processors


def name(city: str) -> str:
    """Name a city."""
    return city


def test_tools(steered: Memograft, plain: Memograft, taught: Datastore) -> None:
    for llm, options in ((steered, {}), (plain, {"datastore": Rtd(taught, weight=0.9)})):
        response = llm.chat_with_tools(
            [FunctionTool.from_defaults(name)], user_msg=ASKED, tool_required=True, **options
        )
        assert [block.block_type for block in response.message.blocks] == ["tool_call"]
        assert llm.get_tool_calls_from_response(response)[0].tool_name == "name"
        assert response.additional_kwargs["memograft"]["references"]
