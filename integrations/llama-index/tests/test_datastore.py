"""A datastore as a setting and as an argument, at every endpoint, alone and with other options."""

from __future__ import annotations

import gc
import json
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import ContextChatEngine, SimpleChatEngine
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.llms.memograft import Memograft, MemograftSynthesizer
from memograft import Datastore, Rtd, shared_datastore
from memograft.errors import SettingsError
from pydantic import BaseModel, ValidationError

from conftest import ASKED, OTHER, TAUGHT, Pages, Seen

MESSAGES = [ChatMessage(role="user", content=ASKED)]


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


def test_settings_of_a_folder_that_can_never_work(plain: Memograft, taught: Datastore) -> None:
    with pytest.raises(ValidationError, match=r"`datastore` must have settings of Rtd, got \['wait'\]; leave them out"):
        Memograft(datastore={"datastore": "store", "wait": 0.9})
    with pytest.raises(SettingsError, match="`weight` must be between 0 and 1, got 9"):
        plain.complete(ASKED, datastore={"datastore": str(taught.path), "weight": 9})


# -- copies, and what is written of it --


def forms(taught: Datastore) -> list[tuple[Any, Any]]:
    """Pairs of a datastore and its serialized form."""
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


async def test_objects(steered: Memograft, plain: Memograft, taught: Datastore, seen: Seen) -> None:
    prompt, given = PromptTemplate("{q}"), {"datastore": Rtd(taught, weight=0.9)}
    assert isinstance(steered.structured_predict(City, prompt, q=ASKED), City)
    assert seen.last.processors
    assert isinstance(await plain.astructured_predict(City, prompt, llm_kwargs=given, q=ASKED), City)
    assert seen.last.processors
    assert isinstance(list(steered.stream_structured_predict(City, prompt, q=ASKED))[-1], City)
    assert isinstance(steered.as_structured_llm(City).complete(ASKED).raw, City)
    assert seen.last.processors
