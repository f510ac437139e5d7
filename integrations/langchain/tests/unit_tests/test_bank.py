"""A bank keeps what is memorized by its content: over calls, streams, async, names, copies and restarts."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.load import dumpd
from memograft import Bank, Engine
from memograft.memory.fastmem import contexts as fastmem

from langchain_memograft import ChatMemograft, MemograftLLM
from pages import PAGE, QUESTION


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many contexts were memorized, each time; the memorizing is the engine's own."""
    calls: list[int] = []
    real = fastmem.memorize

    def counted(backbone: Any, rows: Any, *args: Any, **options: Any) -> Any:
        calls.append(len(rows.mask))
        return real(backbone, rows, *args, **options)

    monkeypatch.setattr(fastmem, "memorize", counted)
    return calls


def reused(message: Any) -> bool:
    return bool(message.response_metadata["memograft"]["reused"])


async def test_a_context_is_memorized_once_whatever_asks_and_after_a_restart(
    tmp_path: Path, trained: list[int]
) -> None:
    answers: list[Any] = []
    infos: list[Any] = []
    for _ in range(2):
        chat = ChatMemograft(model="tiny", bank=tmp_path, max_tokens=24)
        answers += [
            chat.invoke(QUESTION, documents=[PAGE]),
            await chat.ainvoke(QUESTION, documents=[PAGE]),
            list(chat.stream(QUESTION, documents=[PAGE]))[-1],
            [piece async for piece in chat.astream(QUESTION, documents=[PAGE])][-1],
        ]
        llm = MemograftLLM(model="tiny", bank=str(tmp_path), max_tokens=24)
        infos.append(llm.generate([QUESTION], documents=[PAGE]).generations[0][0].generation_info)
        assert llm._engine_for() is chat._engine_for()
        chat._engine_for().close()  # the next one loads the model, and reads the folder, anew
    assert [reused(answer) for answer in answers] == [False, *[True] * 7]
    assert {answers[n].text for n in (0, 1, 4, 5)} == {PAGE}
    assert [info["memograft"]["reused"] for info in infos] == [True, True]
    assert len({answer.response_metadata["memograft"]["memory_id"] for answer in answers}) == 1
    assert trained == [1]


async def test_memorizing_the_same_documents_again_trains_nothing(tmp_path: Path, trained: list[int]) -> None:
    """In another object, under another name, after a restart: the names are the object's, the memories the bank's."""
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
        with pytest.raises(ModelInvalidRequestError, match=r"`memory_id` must name a memory of memorize_documents"):
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


def test_objects_of_one_folder_share_an_engine(tmp_path: Path) -> None:
    chat = ChatMemograft(model="tiny", bank=tmp_path)
    for same in (
        ChatMemograft(model="tiny", bank=str(tmp_path), max_tokens=3),
        MemograftLLM(model="tiny", model_kwargs={"bank": tmp_path}),
        pickle.loads(pickle.dumps(chat)),
        copy.deepcopy(chat),
    ):
        assert same._engine_for() is chat._engine_for()
    for other in (ChatMemograft(model="tiny"), ChatMemograft(model="tiny", bank=tmp_path / "other")):
        assert other._engine_for() is not chat._engine_for()


def test_a_bank_itself(tmp_path: Path) -> None:
    """It counts by itself, and goes to where it cannot go itself as its folder."""
    bank = Bank(tmp_path)
    chat = ChatMemograft(model="tiny", bank=bank)
    assert MemograftLLM(model="tiny", model_kwargs={"bank": bank})._engine_for() is chat._engine_for()
    assert ChatMemograft(model="tiny", bank=Bank(tmp_path))._engine_for() is not chat._engine_for()
    twin = copy.deepcopy(chat)
    assert twin.bank is bank
    assert twin._engine_for() is chat._engine_for()
    gone = pickle.loads(pickle.dumps(chat))
    assert (gone.bank, chat.bank) == (str(tmp_path), bank)
    assert json.loads(chat.model_dump_json())["bank"] == str(tmp_path)
    assert f"bank=Bank({str(tmp_path)!r})" in repr(chat)
    assert json.dumps(dumpd(chat))


def test_a_copy_with_a_bank_uses_it(tmp_path: Path) -> None:
    plain = ChatMemograft(model="tiny", max_tokens=24)
    assert not reused(plain.invoke(QUESTION, documents=[PAGE]))
    banked = plain.model_copy(update={"bank": tmp_path})
    assert banked._engine_for() is not plain._engine_for()
    banked.invoke(QUESTION, documents=[PAGE])
    assert len(Bank(tmp_path).entries()) == 1
    assert banked.model_copy(update={"bank": None})._engine_for() is plain._engine_for()


def test_answers_do_not_depend_on_a_bank(tmp_path: Path) -> None:
    """Nor do caches, which may answer for one without."""
    cache = InMemoryCache()
    plain = ChatMemograft(model="tiny", max_tokens=24, cache=cache)
    banked = ChatMemograft(model="tiny", max_tokens=24, cache=cache, bank=tmp_path)
    assert plain._get_llm_string() == banked._get_llm_string()
    assert str(tmp_path) not in str(banked._identifying_params)
    assert plain.invoke(QUESTION, documents=[PAGE]).text == banked.invoke(QUESTION, documents=[PAGE]).text == PAGE
    assert Bank(tmp_path).entries() == []


def test_a_bank_beside_an_engine(tiny: Engine, tmp_path: Path) -> None:
    said = (
        r"`bank` cannot be given beside an engine, which has its own or none, got .*; give it to the engine: Engine\("
    )
    for given in ({"bank": tmp_path}, {"bank": Bank()}, {"model_kwargs": {"bank": str(tmp_path)}}):
        with pytest.raises(ValueError, match=said):
            ChatMemograft.from_engine(tiny, **given)
    with pytest.raises(ModelInvalidRequestError, match=said):
        ChatMemograft.from_engine(tiny).model_copy(update={"bank": tmp_path}).invoke(QUESTION)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"bank": 3}, "`bank` must be a folder, a memograft.Bank, or None, got 3; leave it out for none"),
        ({"bank": ""}, "`bank` must be a folder, a memograft.Bank, or None, got ''"),
        ({"model_kwargs": {"bank": 3}}, "`bank` must be a folder, a memograft.Bank, or None, got 3"),
        (
            {"bank": "a", "model_kwargs": {"bank": "b"}},
            "`bank` was given twice, got 'a' and in `model_kwargs` 'b'; pass one of them",
        ),
        ({"model_kwargs": 3}, "Input should be a valid dictionary"),
    ],
)
def test_what_is_no_bank(fields: dict[str, Any], match: str) -> None:
    for cls in (ChatMemograft, MemograftLLM):
        with pytest.raises(ValueError, match=match):
            cls(model="tiny", **fields)
