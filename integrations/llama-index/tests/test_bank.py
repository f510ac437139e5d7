"""A bank keeps what is memorized by its content: over calls, streams, async, synthesizers, copies and restarts."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.response.schema import Response
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.llms.memograft import Memograft, MemograftSynthesizer
from memograft import Bank, Engine
from memograft.memory.fastmem import contexts as fastmem

from conftest import MEMORIZED, OTHER, PAGE, QUESTION, Pages


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


@pytest.fixture
def banked() -> Iterator[Memograft]:
    """The bundled model with a bank of its own, in memory."""
    llm = Memograft(model="tiny", bank=Bank(), max_tokens=32)
    yield llm
    llm.engine.close()


def reused(response: Any) -> bool:
    facts = response.metadata if isinstance(response, Response) else response.additional_kwargs
    assert facts is not None
    return bool(facts["memograft"]["reused"])


async def test_a_context_is_memorized_once_whatever_asks_and_after_a_restart(
    tmp_path: Path, trained: list[int]
) -> None:
    responses: list[Any] = []
    for _ in range(2):
        llm = Memograft(model="tiny", bank=tmp_path, max_tokens=32)
        responses += [
            llm.complete(QUESTION, documents=[PAGE]),
            list(llm.stream_complete(QUESTION, documents=[PAGE]))[-1],
            await llm.acomplete(QUESTION, documents=[PAGE]),
            [piece async for piece in await llm.astream_complete(QUESTION, documents=[PAGE])][-1],
        ]
        llm.engine.close()  # the next one loads the model, and reads the folder, anew
    assert [response.text for response in responses] == [MEMORIZED] * 8
    assert [reused(response) for response in responses] == [False, *[True] * 7]
    assert trained == [1]


async def test_nodes_that_are_retrieved_again(banked: Memograft, trained: list[int]) -> None:
    whole, streaming = (MemograftSynthesizer(banked, streaming=streams) for streams in (False, True))
    nodes = Pages(OTHER, PAGE).retrieve("")
    first, again = whole.synthesize(QUESTION, nodes), await whole.asynthesize(QUESTION, nodes)
    streamed: Any = streaming.synthesize(QUESTION, nodes)
    astreamed: Any = await streaming.asynthesize(QUESTION, nodes)
    assert "".join(streamed.response_gen) == MEMORIZED
    assert "".join([token async for token in astreamed.async_response_gen()]) == MEMORIZED
    assert str(first) == str(again) == MEMORIZED
    facts = [response.metadata["memograft"] for response in (first, again, streamed, astreamed)]  # type: ignore[index]
    assert [about["reused"] for about in facts] == [False, True, True, True]
    assert len({about["memory_id"] for about in facts}) == 1
    assert [about["memorized"] for about in facts] == [["page-2"]] * 4  # the nodes are judged as ever
    assert trained == [1]


def test_nodes_that_changed_are_memorized_anew(banked: Memograft) -> None:
    engine, nodes = RetrieverQueryEngine(Pages(PAGE), MemograftSynthesizer(banked)), Pages(PAGE).retrieve("")
    assert str(engine.query(QUESTION)) == MEMORIZED
    nodes[0].node.text = PAGE.replace("Lisbon", "Oslo")  # type: ignore[attr-defined]
    response = MemograftSynthesizer(banked).synthesize(QUESTION, nodes)
    assert "Oslo" in str(response)
    assert not reused(response)


def test_memorize_comes_from_the_bank(tmp_path: Path, trained: list[int]) -> None:
    reports = []
    for _ in range(2):
        llm = Memograft(model="tiny", bank=tmp_path, max_tokens=32)
        handle = llm.memorize([PAGE])
        assert llm.complete(QUESTION, memory=handle).text == MEMORIZED
        reports.append(handle.report)
        llm.engine.close()
    assert [report.reused for report in reports] == [False, True]
    assert reports[0].id == reports[1].id
    assert trained == [1]


def test_objects_of_one_folder_share_an_engine(tmp_path: Path) -> None:
    llm = Memograft(model="tiny", bank=tmp_path)
    for same in (
        Memograft(model="tiny", bank=str(tmp_path), max_tokens=3),
        Memograft(model="tiny", model_kwargs={"bank": tmp_path}),
        Memograft.from_dict(json.loads(llm.to_json())),
        pickle.loads(pickle.dumps(llm)),
        copy.deepcopy(llm),
    ):
        assert same.engine is llm.engine
    for other in (Memograft(model="tiny"), Memograft(model="tiny", bank=tmp_path / "other")):
        assert other.engine is not llm.engine


def test_a_bank_itself(tmp_path: Path) -> None:
    """It counts by itself, and goes to where it cannot go itself as its folder."""
    bank = Bank(tmp_path)
    llm = Memograft(model="tiny", bank=bank)
    assert Memograft(model="tiny", model_kwargs={"bank": bank}).engine is llm.engine
    assert Memograft(model="tiny", bank=Bank(tmp_path)).engine is not llm.engine
    twin = copy.deepcopy(llm)
    assert twin.bank is bank
    assert twin.engine is llm.engine
    assert json.loads(llm.to_json())["bank"] == pickle.loads(pickle.dumps(llm)).bank == str(tmp_path)
    assert json.loads(Memograft(bank=Bank()).to_json())["bank"] is None
    assert repr(bank) == f"Bank({str(tmp_path)!r})"


def test_a_copy_with_a_bank_uses_it(tmp_path: Path) -> None:
    plain = Memograft(model="tiny", max_tokens=32)
    assert not reused(plain.complete(QUESTION, documents=[PAGE]))
    banked = plain.model_copy(update={"bank": tmp_path})
    assert banked.engine is not plain.engine
    banked.complete(QUESTION, documents=[PAGE])
    assert len(Bank(tmp_path).entries()) == 1
    assert banked.model_copy(update={"bank": None}).engine is plain.engine


def test_a_bank_beside_an_engine(engine: Engine, tmp_path: Path) -> None:
    said = (
        r"`bank` cannot be given beside an engine, which has its own or none, got .*; give it to the engine: Engine\("
    )
    for given in ({"bank": tmp_path}, {"bank": Bank()}, {"model_kwargs": {"bank": str(tmp_path)}}):
        with pytest.raises(ValueError, match=said):
            Memograft.from_engine(engine, **given)
    with pytest.raises(ValueError, match=said):
        Memograft.from_engine(engine).model_copy(update={"bank": tmp_path}).complete(QUESTION)


@pytest.mark.parametrize(
    ("settings", "match"),
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
def test_what_is_no_bank(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Memograft(**settings)


@pytest.mark.parametrize("keep", [0, 8])
def test_keep_is_gone(llm: Memograft, keep: Any) -> None:
    said = rf"`keep` is gone, got {keep}; pass Memograft\(bank=...\), which keeps memories, instead"
    with pytest.raises(ValueError, match=said):
        MemograftSynthesizer(llm, keep=keep)
