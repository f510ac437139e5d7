"""`n` answers to one prompt, and the further settings of sampling."""

from __future__ import annotations

from typing import Any

import pytest
from conformance.pages import PAGE
from langchain_core.messages import HumanMessage
from langchain_core.outputs import ChatGeneration
from memograft import FastMem, Request, Sampling, shared_engine

from langchain_memograft import ChatMemograft, MemograftLLM

QUESTION = "Tell me something about Australia."
SETTINGS: dict[str, Any] = {"model": "tiny", "temperature": 3.0, "seed": 7, "max_tokens": 12, "memory": None}


def expected(n: int, **settings: Any) -> list[str]:
    sampling = Sampling(12, **{"temperature": 3.0, "seed": 7, **settings})
    return [a.text for a in shared_engine("tiny").answer_batch(Request(QUESTION, sampling=sampling).copies(n))]


async def test_a_chat_model_generates_several_answers() -> None:
    wanted = expected(3)
    assert len(set(wanted)) == 3
    chat = ChatMemograft(n=3, **SETTINGS)
    question = [HumanMessage(QUESTION)]
    for result in (chat.generate([question, question]), await chat.agenerate([question, question])):
        for generations in result.generations:
            assert [generation.text for generation in generations] == wanted
            for generation in generations:
                assert isinstance(generation, ChatGeneration)
                assert generation.message.usage_metadata["output_tokens"] <= 12  # type: ignore[attr-defined]
    assert chat.invoke(QUESTION).text == wanted[0] == ChatMemograft(**SETTINGS).invoke(QUESTION).text
    one_by_call = ChatMemograft(**SETTINGS).generate([question], n=2)
    assert [generation.text for generation in one_by_call.generations[0]] == wanted[:2]


async def test_an_llm_generates_several_answers() -> None:
    wanted = expected(2)
    llm = MemograftLLM(n=2, **SETTINGS)
    for result in (llm.generate([QUESTION] * 2), await llm.agenerate([QUESTION] * 2)):
        assert [[generation.text for generation in some] for some in result.generations] == [wanted, wanted]
        infos = [generation.generation_info or {} for some in result.generations for generation in some]
        total = sum(info["usage_metadata"]["output_tokens"] for info in infos)
        assert result.llm_output["token_usage"]["completion_tokens"] == total  # type: ignore[index]
    assert [g.text for g in MemograftLLM(**SETTINGS).generate([QUESTION], n=2).generations[0]] == wanted


def test_documents_are_memorized_once_for_all_answers() -> None:
    chat = ChatMemograft(n=2, **{**SETTINGS, "memory": FastMem()})
    (generations,) = chat.generate([[HumanMessage("What is the capital of Australia?")]], documents=[PAGE]).generations
    reports = [g.message.response_metadata["memograft"] for g in generations if isinstance(g, ChatGeneration)]
    assert len(reports) == 2
    assert reports[0]["memorized"] == reports[1]["memorized"] != []
    assert reports[0]["loss_after"] == reports[1]["loss_after"]


async def test_a_stream_has_one_answer() -> None:
    message = r"`n` must be 1 for a stream, got 2; use `generate`, or a stream for each answer"
    for model in (ChatMemograft(n=2, **SETTINGS), MemograftLLM(n=2, **SETTINGS)):
        with pytest.raises(ValueError, match=message):
            list(model.stream(QUESTION))
        with pytest.raises(ValueError, match=message):
            [piece async for piece in model.astream(QUESTION)]
        assert list(model.stream(QUESTION, n=1))


def test_n_out_of_range() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        ChatMemograft(n=0, **SETTINGS)
    for n in (0, 1.5, "2"):
        with pytest.raises(ValueError, match="`n` must be a whole number of at least 1, got"):
            ChatMemograft(**SETTINGS).invoke(QUESTION, n=n)


def test_answers_of_another_n_or_penalty_are_not_in_the_cache() -> None:
    keys = {
        ChatMemograft(**SETTINGS, **further)._get_llm_string()
        for further in ({}, {"n": 2}, {"min_p": 0.1}, {"repetition_penalty": 1.5}, {"logit_bias": {5: 1.0}})
    }
    assert len(keys) == 5


@pytest.mark.parametrize("settings", [{"min_p": 0.5}, {"repetition_penalty": 1.8}, {"logit_bias": {300: 40.0}}])
def test_settings_of_sampling_reach_the_engine(settings: dict[str, Any]) -> None:
    wanted = expected(1, **settings)
    assert wanted != expected(1)
    assert ChatMemograft(**SETTINGS, **settings).invoke(QUESTION).text == wanted[0]
    assert MemograftLLM(**SETTINGS, **settings).invoke(QUESTION) == wanted[0]
    assert ChatMemograft(**SETTINGS).invoke(QUESTION, **settings).text == wanted[0]
    assert MemograftLLM(**SETTINGS).invoke(QUESTION, **settings) == wanted[0]
