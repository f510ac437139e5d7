"""A bank and the synthesizer; the rest is in the conformance suite."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.llms.memograft import Memograft, MemograftSynthesizer
from memograft import Bank

from conftest import MEMORIZED, OTHER, PAGE, QUESTION, Pages


@pytest.fixture
def banked() -> Iterator[Memograft]:
    """The bundled model with a bank of its own, in memory."""
    llm = Memograft(model="tiny", bank=Bank(), max_tokens=32)
    yield llm
    llm.engine.close()


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


def test_serialized_llms_of_one_folder_share_an_engine(tmp_path: Path) -> None:
    llm = Memograft(model="tiny", bank=tmp_path)
    assert Memograft.from_dict(json.loads(llm.to_json())).engine is llm.engine
    assert json.loads(Memograft(model="tiny", bank=Bank()).to_json())["bank"] is None


@pytest.mark.parametrize("keep", [0, 8])
def test_keep_is_gone(llm: Memograft, keep: Any) -> None:
    said = rf"`keep` was removed, got {keep}; pass Memograft\(bank=...\), which keeps memories, instead"
    with pytest.raises(ValueError, match=said):
        MemograftSynthesizer(llm, keep=keep)
