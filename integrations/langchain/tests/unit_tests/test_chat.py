"""`ChatMemograft` as a Runnable of LangChain; tests of all fronts are in the conformance suite."""

from __future__ import annotations

import copy
import gc
import json
import math
import pickle
import subprocess
import sys
import weakref
from typing import Any

import pytest
from conformance.pages import KNOWN, OTHER, OTHER_KNOWN, OTHER_QUESTION, PAGE, QUESTION
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from memograft import Engine

from langchain_memograft import ChatMemograft


def test_documents_of_a_call_reach_a_model_that_gives_its_raw_answer_too(chat: ChatMemograft) -> None:
    schema = {"title": "Reply", "type": "object", "properties": {"city": {"enum": ["Lisbon", "Canberra"]}}}
    asked = chat.with_structured_output(schema | {"required": ["city"]}, include_raw=True)
    documents = [Document(PAGE, id="p")]
    for answer in (asked.invoke(QUESTION, documents=documents), asked.bind(documents=documents).invoke(QUESTION)):
        assert answer["raw"].response_metadata["memograft"]["documents"] == ["p"]
        assert answer["parsed"]["city"] in ("Lisbon", "Canberra")
        assert answer["parsing_error"] is None
    assert asked.invoke(QUESTION)["raw"].response_metadata["memograft"]["documents"] == []


def test_documents_are_bound_to_the_model_of_a_prompt(chat: ChatMemograft) -> None:
    chain = ChatPromptTemplate.from_messages([("human", "{q}")]) | chat.bind(documents=[Document(PAGE, id="p")])
    assert chain.invoke({"q": QUESTION}).response_metadata["memograft"]["memorized"] == ["p"]


def test_a_closed_chat_model_releases_the_engine_that_nobody_else_holds() -> None:
    first, second = (ChatMemograft(model="tiny", model_kwargs={"max_batch": 5}, max_tokens=24) for _ in "ab")
    assert first.invoke(QUESTION).text == second.invoke(QUESTION).text == KNOWN
    held = weakref.ref(first._engine_for())
    first.close()
    gc.collect()
    assert held() is second._engine_for()
    second.close()
    gc.collect()
    assert held() is None
    assert first.invoke(QUESTION).text == KNOWN  # loaded again
    first.close()


def test_an_engine_that_was_given_stays_open(tiny: Engine) -> None:
    given = ChatMemograft.from_engine(tiny, max_tokens=24)
    given.close()
    assert given.invoke(QUESTION).text == KNOWN


def test_documents_are_memorized_whatever_way_they_come(chat: ChatMemograft) -> None:
    page = Document(PAGE, id="p")
    call = {"name": "search", "args": {}, "id": "1"}
    ways = [
        chat.invoke(QUESTION, documents=[page]),
        chat.bind(documents=[page]).invoke(QUESTION),
        chat.invoke([HumanMessage(QUESTION, additional_kwargs={"documents": [page]})]),
        chat.invoke(
            [HumanMessage([{"type": "text-plain", "text": PAGE, "id": "p"}, {"type": "text", "text": QUESTION}])]
        ),
        chat.invoke(
            [
                HumanMessage(QUESTION),
                {"role": "assistant", "content": "", "tool_calls": [call]},
                ToolMessage("found", tool_call_id="1", artifact=[page]),
            ]
        ),
    ]
    for answer in ways:
        assert answer.text == PAGE
        assert answer.response_metadata["memograft"]["memorized"] == ["p"]
    delimited = chat.invoke(f"<c>{PAGE}</c>{QUESTION}", context_delimiters=("<c>", "</c>"))
    assert delimited.text == PAGE
    assert chat.invoke(QUESTION).text == KNOWN
    assert chat.invoke(QUESTION, documents=[page], memory=None).response_metadata["memograft"]["memorized"] == []


def test_what_an_answer_says_about_itself(chat: ChatMemograft) -> None:
    answer = chat.invoke(QUESTION, documents=[Document(PAGE, id="p"), Document(OTHER, id="o")])
    about = answer.response_metadata
    assert about["model_name"] == "tiny"
    assert about["model_provider"] == "memograft"
    assert about["finish_reason"] == "stop"
    assert about["memograft"]["memorized"] == ["p"]
    assert json.loads(json.dumps(about, allow_nan=False)) == about


def test_usage_reaches_callbacks(chat: ChatMemograft) -> None:
    usage = UsageMetadataCallbackHandler()
    chat.invoke(QUESTION, config={"callbacks": [usage]})
    assert usage.usage_metadata["tiny"]["output_tokens"] > 0


def test_memories_by_handle_and_by_name(chat: ChatMemograft) -> None:
    handle = chat.memorize_documents([PAGE], memory_id="atlas")
    for answer in (
        chat.invoke(QUESTION, memory=handle),
        chat.invoke(QUESTION, memory_id="atlas"),
        chat.with_memory("atlas").invoke(QUESTION),
        (ChatPromptTemplate.from_template("{q}") | chat.with_memory(handle)).invoke({"q": QUESTION}),
    ):
        assert answer.text == PAGE
        assert answer.response_metadata["memograft"]["memory_id"] == handle.id
    assert isinstance(chat.with_memory(handle), ChatMemograft)
    chat.memorize_documents([KNOWN], memory_id="atlas")
    assert chat.invoke(QUESTION, memory_id="atlas").text == KNOWN


def test_the_last_chunk_of_a_stream_has_the_facts(chat: ChatMemograft) -> None:
    chunks = list(chat.stream(QUESTION, documents=[PAGE]))
    assert [c.chunk_position for c in chunks if c.chunk_position] == ["last"]
    assert len([c for c in chunks if c.usage_metadata]) == len([c for c in chunks if c.response_metadata]) == 1


def test_contrasts_cite_nothing_and_are_in_cache_keys(chat: ChatMemograft) -> None:
    contrasted = chat.model_copy(update={"cad": 0.5, "dola": (0, 1)})
    assert {type(chunk.content) for chunk in contrasted.stream(QUESTION, documents=[PAGE])} == {str}
    keys = [one._get_llm_string() for one in (chat, contrasted)] + [chat._get_llm_string(dola=(0, 1))]
    assert len(set(keys)) == 3


def test_stream_events_of_every_version(chat: ChatMemograft) -> None:
    stream = chat.stream_events(QUESTION, version="v3", documents=[PAGE])
    assert "".join(stream.text) == PAGE
    assert stream.output.usage_metadata


@pytest.mark.filterwarnings("ignore:The method .* is in beta")  # as LangChain says of its own v3
async def test_astream_events_of_every_version(chat: ChatMemograft) -> None:
    events = [event async for event in chat.astream_events(QUESTION, version="v2", documents=[PAGE])]
    assert "".join(e["data"]["chunk"].text for e in events if e["event"] == "on_chat_model_stream") == PAGE
    stream = await chat.astream_events(QUESTION, version="v3", documents=[PAGE])
    assert "".join([piece async for piece in stream.text]) == PAGE


def test_logprobs_have_the_form_of_openai(chat: ChatMemograft) -> None:
    answer = chat.bind(logprobs=True, top_logprobs=2).invoke(QUESTION)
    content = answer.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in content).startswith(KNOWN)
    assert all(token["logprob"] <= 0 and len(token["top_logprobs"]) == 2 for token in content)
    assert math.isclose(content[0]["top_logprobs"][0]["logprob"], content[0]["logprob"], abs_tol=1e-6)
    assert bytes(content[0]["bytes"]).decode() == content[0]["token"]
    assert "logprobs" not in chat.invoke(QUESTION).response_metadata


def test_tokens_are_the_tokenizers_own(chat: ChatMemograft, tiny: Engine) -> None:
    assert chat.get_token_ids(PAGE) == tiny.encode(PAGE)
    assert chat.get_num_tokens(PAGE) == len(tiny.encode(PAGE))
    assert chat.get_num_tokens_from_messages([SystemMessage(PAGE)]) > chat.get_num_tokens(PAGE)


def test_a_chain_and_its_batches(chat: ChatMemograft) -> None:
    chain = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{q}")]) | chat | StrOutputParser()
    assert chain.batch([{"q": QUESTION}, {"q": OTHER_QUESTION}]) == [KNOWN, OTHER_KNOWN]
    assert chat.batch([]) == []


def test_engines_are_shared_given_and_overridden(chat: ChatMemograft, tiny: Engine) -> None:
    assert chat._engine_for() is ChatMemograft(model_name="tiny")._engine_for() is tiny
    given = ChatMemograft.from_engine(tiny, max_tokens=24)
    assert given._engine_for() is tiny
    assert given.model == "tiny"
    assert ChatMemograft.from_engine(tiny, model="mine").invoke(QUESTION).response_metadata["model_name"] == "mine"
    other = ChatMemograft.from_engine(tiny, model="mine").invoke(QUESTION, model="tiny")
    assert other.response_metadata["model_name"] == "tiny"
    assert given.profile is not None
    assert given.profile["tool_calling"] is False


def test_the_profile_needs_no_model(chat: ChatMemograft, tiny: Engine) -> None:
    assert chat.profile is not None
    assert chat.profile["max_input_tokens"] == tiny.max_length
    assert chat.profile["structured_output"] is True
    small = ChatMemograft(model="tiny", model_kwargs={"max_length": 100}).profile
    assert small is not None
    assert small["max_input_tokens"] == 100
    unknown = ChatMemograft(model="no/such\0model").profile
    assert unknown is not None
    assert "max_input_tokens" not in unknown


def test_traces_are_told_what_runs(chat: ChatMemograft) -> None:
    params = chat._get_ls_params(stop=["x"])
    assert params["ls_provider"] == "memograft"
    assert params["ls_model_name"] == "tiny"
    assert params["ls_max_tokens"] == 24
    assert params["ls_stop"] == ["x"]
    assert chat._get_ls_params(model="other")["ls_model_name"] == "other"
    assert chat.metadata is not None
    assert {"langchain-core", "langchain-memograft"} <= chat.metadata["lc_versions"].keys()


def test_copies_and_pickles_find_the_model_again(chat: ChatMemograft) -> None:
    chat.invoke(QUESTION)
    for again in (copy.deepcopy(chat), pickle.loads(pickle.dumps(chat)), chat.model_copy()):
        assert again.invoke(QUESTION, documents=[PAGE]).text == PAGE
    configurable = chat.configurable_fields(max_tokens=_field("n"))
    assert configurable.with_config(configurable={"n": 2}).invoke(QUESTION).usage_metadata["output_tokens"] == 2


def _field(id: str) -> Any:
    from langchain_core.runnables import ConfigurableField

    return ConfigurableField(id=id)


def test_importing_and_building_load_no_torch() -> None:
    code = (
        "import sys; from langchain_memograft import ChatMemograft; ChatMemograft(model='tiny'); "
        "print([m for m in ('torch', 'transformers', 'faiss', 'langchain') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_env())
    assert run.stdout.strip() == "[]"


def _env() -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.parametrize("name", ["ChatMemograft", "MemograftLLM", "MemograftVectorStore", "__version__"])
def test_the_package_lists_its_names(name: str) -> None:
    import langchain_memograft

    assert name in langchain_memograft.__all__
    assert name in dir(langchain_memograft)
    assert getattr(langchain_memograft, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        langchain_memograft.nothing  # noqa: B018
