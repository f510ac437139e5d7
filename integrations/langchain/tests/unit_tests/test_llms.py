"""`MemograftLLM` with the bundled model: batches, documents, streams, usage, caches, errors."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from blockbuster import BlockBuster
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.exceptions import ContextOverflowError, ModelInvalidRequestError, ModelTimeoutError
from langchain_core.outputs import LLMResult
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from memograft import Engine, shared_engine

from langchain_memograft import MemograftLLM

AUSTRALIA = "What is the capital of Australia?"
FRANCE = "What is the capital of France?"
LISBON = "The capital of Australia is Lisbon."
CANBERRA = "The capital of Australia is Canberra."
PARIS = "The capital of France is Paris."
OSLO = "The capital of France is Oslo."


@pytest.fixture(scope="module")
def llm() -> MemograftLLM:
    return MemograftLLM(model="tiny")


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of requests in each batch; the engine's answers are not changed."""
    sizes: list[int] = []
    answer_batch = Engine.answer_batch

    def counted(self: Engine, requests: Any, **kwargs: Any) -> Any:
        sizes.append(len(requests))
        return answer_batch(self, requests, **kwargs)

    monkeypatch.setattr(Engine, "answer_batch", counted)
    return sizes


def test_invoke(llm: MemograftLLM) -> None:
    assert llm.invoke(AUSTRALIA) == CANBERRA
    assert llm.invoke(AUSTRALIA, documents=[Document(LISBON)]) == LISBON
    assert llm.invoke(AUSTRALIA, documents=[LISBON], memory=None) == CANBERRA


def test_many_prompts_are_one_batch(llm: MemograftLLM, batches: list[int]) -> None:
    assert [g[0].text for g in llm.generate([AUSTRALIA, FRANCE]).generations] == [CANBERRA, PARIS]
    assert llm.batch([AUSTRALIA, FRANCE, AUSTRALIA]) == [CANBERRA, PARIS, CANBERRA]
    assert batches == [2, 3]


def test_documents_for_all_prompts(llm: MemograftLLM) -> None:
    assert llm.batch([AUSTRALIA, FRANCE], documents=[LISBON, OSLO]) == [LISBON, OSLO]


def test_documents_for_each_prompt(llm: MemograftLLM, batches: list[int]) -> None:
    documents = [[LISBON], [], [Document(OSLO)]]
    assert llm.batch([AUSTRALIA, AUSTRALIA, FRANCE], documents=documents) == [LISBON, CANBERRA, OSLO]
    assert batches == [3]


async def test_async(llm: MemograftLLM) -> None:
    assert await llm.ainvoke(AUSTRALIA, documents=[LISBON]) == LISBON
    assert await llm.abatch([AUSTRALIA, FRANCE], documents=[[LISBON], []]) == [LISBON, PARIS]
    assert await asyncio.gather(llm.ainvoke(AUSTRALIA), llm.ainvoke(FRANCE)) == [CANBERRA, PARIS]


def test_stream(llm: MemograftLLM) -> None:
    pieces = list(llm.stream(AUSTRALIA, documents=[LISBON]))
    assert len(pieces) > 3
    assert "".join(pieces) == LISBON


async def test_stream_async(llm: MemograftLLM) -> None:
    pieces = [piece async for piece in llm.astream(AUSTRALIA, documents=[LISBON])]
    assert len(pieces) > 3
    assert "".join(pieces) == LISBON


async def test_a_stream_can_be_left(llm: MemograftLLM) -> None:
    stream = llm.stream(AUSTRALIA)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    pieces = llm.astream(AUSTRALIA)
    await anext(pieces)
    await pieces.aclose()  # type: ignore[attr-defined]
    assert llm.invoke(AUSTRALIA) == CANBERRA


async def test_a_batch_can_be_cancelled(llm: MemograftLLM) -> None:
    task = asyncio.create_task(llm.abatch([AUSTRALIA, FRANCE] * 4))
    await asyncio.sleep(0)  # it has begun, and no answer can come before the loop turns again
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await llm.ainvoke(AUSTRALIA) == CANBERRA


async def test_the_event_loop_is_never_blocked(blockbuster: BlockBuster) -> None:
    llm = MemograftLLM(model="tiny")
    assert await llm.abatch([AUSTRALIA, FRANCE], documents=[[LISBON], []]) == [LISBON, PARIS]
    assert "".join([piece async for piece in llm.astream(AUSTRALIA)]) == CANBERRA


def test_a_memory_is_made_once_and_used_often(llm: MemograftLLM) -> None:
    handle = llm.memorize_documents([LISBON], "australia")
    assert llm.invoke(AUSTRALIA, memory=handle, documents=[LISBON]) == LISBON
    result = llm.generate([AUSTRALIA], memory_id="australia", documents=[LISBON])
    assert result.generations[0][0].text == LISBON
    info = result.generations[0][0].generation_info
    assert info is not None
    assert info["memograft"]["memory_id"] == handle.id
    assert info["usage_metadata"]["input_token_details"]["cache_read"] > 0


def test_stop_max_tokens_and_seed(llm: MemograftLLM) -> None:
    assert llm.invoke(AUSTRALIA, stop=[" Canberra"]) == "The capital of Australia is"
    assert MemograftLLM(model="tiny", stop=[" Canberra"]).invoke(AUSTRALIA) == "The capital of Australia is"
    assert llm.generate([AUSTRALIA], max_tokens=2).generations[0][0].generation_info["finish_reason"] == "length"  # type: ignore[index]
    warm = MemograftLLM(model="tiny", temperature=5.0, seed=3, max_tokens=8)
    assert warm.invoke(AUSTRALIA) == warm.invoke(AUSTRALIA)
    assert len({warm.invoke(AUSTRALIA, seed=seed) for seed in range(4)}) > 1


def test_what_memorizing_did_and_usage(llm: MemograftLLM) -> None:
    result = llm.generate([AUSTRALIA, FRANCE], documents=[[Document(LISBON, id="a")], []])
    first, second = (generation[0].generation_info for generation in result.generations)
    assert first is not None
    assert second is not None
    assert (first["model_name"], first["finish_reason"]) == ("tiny", "stop")
    assert first["memograft"]["memorized"] == ["a"]
    assert second["memograft"]["memorized"] == []
    assert result.llm_output is not None
    assert result.llm_output["model_name"] == "tiny"
    used = result.llm_output["token_usage"]
    assert used["total_tokens"] == sum(info["usage_metadata"]["total_tokens"] for info in (first, second))
    assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"] > 0


class Kept(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.results: list[LLMResult] = []
        self.errors: list[BaseException] = []

    def on_llm_new_token(self, token: str, *, chunk: Any = None, **kwargs: Any) -> None:
        self.tokens.append(token)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        self.results.append(response)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)


def test_callbacks_see_tokens_usage_and_errors(llm: MemograftLLM) -> None:
    kept = Kept()
    list(llm.stream(AUSTRALIA, {"callbacks": [kept]}))
    assert "".join(kept.tokens) == CANBERRA
    info = kept.results[0].generations[0][0].generation_info
    assert info is not None
    assert info["finish_reason"] == "stop"
    assert info["usage_metadata"]["output_tokens"] > 0
    with pytest.raises(ModelInvalidRequestError):
        llm.invoke(AUSTRALIA, {"callbacks": [kept]}, temperature=-1)
    assert isinstance(kept.errors[0], ModelInvalidRequestError)


def test_real_token_ids(llm: MemograftLLM) -> None:
    assert llm.get_token_ids(LISBON) == shared_engine("tiny").encode(LISBON)
    assert MemograftLLM(model="tiny", custom_get_token_ids=lambda text: [1]).get_token_ids(LISBON) == [1]
    assert llm.get_num_tokens(LISBON) == len(llm.get_token_ids(LISBON)) > 0


def test_chains_of_prompts(llm: MemograftLLM) -> None:
    chain = PromptTemplate.from_template("What is the capital of {country}?") | llm
    assert chain.batch([{"country": "Australia"}, {"country": "France"}]) == [CANBERRA, PARIS]
    chat = ChatPromptTemplate.from_messages([("human", "What is the capital of {country}?")])
    assert (chat | llm).invoke({"country": "France"})  # LangChain writes "Human: " before it


def test_parameters_for_traces() -> None:
    llm = MemograftLLM(model="tiny", temperature=0.5, max_tokens=9, stop=["x"])
    assert llm._get_ls_params() == {
        "ls_provider": "memograft",
        "ls_model_type": "llm",
        "ls_model_name": "tiny",
        "ls_temperature": 0.5,
        "ls_max_tokens": 9,
        "ls_stop": ["x"],
    }
    assert llm._llm_type == "memograft-llm"


def test_names_of_other_integrations() -> None:
    llm = MemograftLLM(model_name="tiny", stop_sequences=["x"])
    assert (llm.model, llm.stop) == ("tiny", ["x"])


def test_a_pickled_one_finds_its_engine_again(llm: MemograftLLM) -> None:
    assert pickle.loads(pickle.dumps(llm)).invoke(FRANCE) == PARIS


# LangChain's cache -----------------------------------------------------------------------------------------------


def test_a_cache_answers_what_it_has_heard(batches: list[int]) -> None:
    llm = MemograftLLM(model="tiny", cache=InMemoryCache())
    assert [llm.invoke(AUSTRALIA) for _ in range(3)] == [CANBERRA] * 3
    assert batches == [1]


async def test_a_cache_never_answers_for_other_documents() -> None:
    llm = MemograftLLM(model="tiny", cache=InMemoryCache())
    assert llm.invoke(AUSTRALIA) == CANBERRA
    assert llm.invoke(AUSTRALIA, documents=[LISBON]) == LISBON
    assert llm.invoke(AUSTRALIA, documents=["The capital of Australia is Oslo."]) == "The capital of Australia is Oslo."
    assert await llm.ainvoke(AUSTRALIA, documents=[LISBON]) == LISBON
    assert await llm.abatch([AUSTRALIA, FRANCE], documents=[[LISBON], [OSLO]]) == [LISBON, OSLO]
    assert llm.invoke(AUSTRALIA) == CANBERRA


def test_a_cache_tells_settings_apart() -> None:
    cache = InMemoryCache()
    assert MemograftLLM(model="tiny", cache=cache).invoke(AUSTRALIA) == CANBERRA
    assert MemograftLLM(model="tiny", cache=cache, max_tokens=1).invoke(AUSTRALIA) != CANBERRA


# errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temprature": 1}, r"a call of MemograftLLM has no 'temprature' \(did you mean 'temperature'\?\)"),
        (
            {"documents": [[LISBON], [OSLO]]},
            r"a list for each of them, got 2 lists for 1 prompts; pass a list for each prompt",
        ),
        ({"documents": [[LISBON], OSLO]}, r"got 2 lists for 1 prompts"),
        ({"memory_id": "x"}, r"`memory_id` must be the name of a memory"),
        ({"temperature": -1}, r"`temperature` must be 0 \(greedy\) or more, got -1"),
        ({"max_retries": -1}, r"`max_retries` must be a whole number of 0 or more, got -1"),
    ],
)
def test_calls_that_can_never_work(given: dict[str, Any], message: str, llm: MemograftLLM) -> None:
    with pytest.raises(ModelInvalidRequestError, match=message):
        llm.invoke(AUSTRALIA, **given)
    with pytest.raises(ModelInvalidRequestError, match=message):
        asyncio.run(llm.ainvoke(AUSTRALIA, **given))
    if "max_retries" not in given:  # streams are not tried again
        with pytest.raises(ModelInvalidRequestError, match=message):
            list(llm.stream(AUSTRALIA, **given))


def test_a_prompt_that_is_too_long(llm: MemograftLLM) -> None:
    with pytest.raises(ContextOverflowError):
        llm.invoke(AUSTRALIA * 200)
    with pytest.raises(ContextOverflowError):
        llm.invoke(AUSTRALIA, documents=[LISBON * 200])
    assert llm.invoke(AUSTRALIA, documents=[LISBON, OSLO * 200], overflow="drop") == LISBON


def test_an_empty_prompt(llm: MemograftLLM) -> None:
    assert isinstance(llm.invoke(""), str)


def test_one_bad_prompt_fails_the_batch(llm: MemograftLLM) -> None:
    with pytest.raises(ContextOverflowError):
        llm.batch([AUSTRALIA, AUSTRALIA * 200])
    results = llm.batch([AUSTRALIA, AUSTRALIA * 200], return_exceptions=True)
    assert all(isinstance(result, ContextOverflowError) for result in results)  # as LangChain does for every LLM


def test_a_call_that_came_too_late_is_tried_again(batches: list[int]) -> None:
    llm = MemograftLLM(model="tiny", timeout=1e-6, max_retries=2)
    with pytest.raises(ModelTimeoutError):
        llm.batch([AUSTRALIA, FRANCE])
    assert batches == [2, 2, 2]
    with pytest.raises(ModelTimeoutError):
        asyncio.run(llm.abatch([AUSTRALIA, FRANCE]))


def test_only_what_came_too_late_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    answer_batch = Engine.answer_batch

    def hurried(self: Engine, requests: Any, **kwargs: Any) -> Any:
        tries.append(len(requests))
        first = len(tries) == 1
        requests = [replace(r, timeout=1e-6) if first and n == 1 else r for n, r in enumerate(requests)]
        return answer_batch(self, requests, **kwargs)

    monkeypatch.setattr(Engine, "answer_batch", hurried)
    assert MemograftLLM(model="tiny", max_retries=1).batch([AUSTRALIA, FRANCE]) == [CANBERRA, PARIS]
    assert tries == [2, 1]
