"""Names of ChatMemograft that the LLM accepts with the same meaning, and errors for those that it does not accept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.llms.memograft import Memograft, MemograftEmbedding
from memograft import Engine, Sampling
from memograft.errors import RequestTimeoutError

from conftest import MEMORIZED, PAGE, QUESTION, Seen

SAMPLED: dict[str, Any] = {"temperature": 3.0, "seed": 7, "max_tokens": 12}
# Fields of ChatMemograft itself, without those that it has from LangChain.
CHAT_MEMOGRAFT = (
    *(
        "api_key",
        "bank",
        "base_url",
        "cad",
        "context_delimiters",
        "datastore",
        "dola",
        "engine",
        "logit_bias",
        "logprobs",
    ),
    *("max_retries", "max_tokens", "memory", "min_p", "model", "model_kwargs", "n", "overflow", "repetition_penalty"),
    *("seed", "stop", "streaming", "temperature", "timeout", "top_k", "top_logprobs", "top_p", "model_name"),
    "stop_sequences",
)


def test_every_name_is_taken_or_explained(engine: Engine) -> None:
    values = {"engine": engine, "context_delimiters": ("<", ">"), "model_kwargs": {}, "stop": [], "logit_bias": {}}
    values |= {"overflow": "drop", "max_retries": 1, "max_tokens": 3, "min_p": 0.1, "temperature": 0.5, "top_p": 0.5}
    values |= {"model": "tiny", "model_name": "tiny", "stop_sequences": [], "logprobs": True, "n": 1}
    for name in CHAT_MEMOGRAFT:
        if name == "streaming":
            with pytest.raises(ValueError, match="Memograft has no 'streaming'; call `stream_chat` or"):
                Memograft(streaming=True)
        else:
            assert Memograft(**{name: values.get(name)})


def test_an_engine(engine: Engine) -> None:
    llm = Memograft(engine=engine, max_tokens=32)
    assert llm.engine is engine is Memograft.from_engine(engine).engine
    assert llm.complete(QUESTION, documents=[PAGE]).text == MEMORIZED
    assert Memograft(engine=engine, model_name="mine").model == "mine"
    with pytest.raises(ValueError, match=r"`engine` must be a memograft.Engine, got str; write Engine\(model, token"):
        Memograft(engine="tiny")
    with pytest.raises(ValueError, match="`bank`"):
        Memograft(engine=engine, bank="folder")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 3}, 3),
        ({"logprobs": False, "top_logprobs": 3}, None),
        ({"logprobs": 2}, 2),
        ({"top_logprobs": 2}, 2),
    ],
)
def test_logprobs(llm: Memograft, seen: Seen, given: dict[str, Any], meant: int | None) -> None:
    assert Memograft(**given).logprobs == meant
    llm.complete(QUESTION, **given)
    assert seen.last.logprobs == meant


def test_sampling(engine: Engine, llm: Memograft, seen: Seen) -> None:
    given = {"min_p": 0.2, "repetition_penalty": 1.5, "logit_bias": {300: 2.0}}
    wanted = Sampling(12, 3.0, seed=7, **given)  # type: ignore[arg-type]
    made = Memograft(engine=engine, memory=None, **SAMPLED, **given)
    texts = [made.complete(QUESTION).text, llm.complete(QUESTION, memory=None, **SAMPLED, **given).text]
    assert texts == [engine.answer(QUESTION, sampling=wanted).text] * 2
    assert seen.last.sampling == wanted
    again = Memograft.from_dict(json.loads(made.to_json()))
    assert (again.min_p, again.repetition_penalty, again.logit_bias) == (0.2, 1.5, {300: 2.0})
    for name, match in (("min_p", "`min_p` must be 0"), ("repetition_penalty", "`repetition_penalty` must be above 0")):
        with pytest.raises(ValueError, match=match):
            Memograft(**{name: -1.0})


def test_context_delimiters(engine: Engine, llm: Memograft) -> None:
    text = f"<context>{PAGE}</context>\n{QUESTION}"
    framed = [ChatMessage(role="user", content=text)]
    made = Memograft(engine=engine, context_delimiters=("<context>", "</context>"), max_tokens=32)
    for response in (made.chat(framed), llm.chat(framed, context_delimiters=("<context>", "</context>"))):
        assert response.message.content == MEMORIZED
        assert len(response.raw["memograft"]["memorized"]) == 1
    with pytest.raises(ValueError, match="`context_delimiters` must be two strings that are not empty, or None"):
        Memograft(context_delimiters=("", "x"))
    with pytest.raises(ValueError, match="does not close it with '</context>'"):
        made.complete("<context>Where?")


async def test_retries(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two attempts time out without waiting."""
    tries: list[str] = []
    answer, aanswer = engine.answer, engine.aanswer

    def late(request: Any) -> Any:
        tries.append("sync")
        if len(tries) < 3:
            raise RequestTimeoutError("late")
        return answer(request)

    async def alate(request: Any) -> Any:
        tries.append("async")
        if len(tries) < 3:
            raise RequestTimeoutError("late")
        return await aanswer(request)

    monkeypatch.setattr(engine, "answer", late)
    monkeypatch.setattr(engine, "aanswer", alate)
    llm = Memograft(engine=engine, max_retries=2, max_tokens=32)
    assert llm.complete(QUESTION, documents=[PAGE]).text == MEMORIZED
    tries.clear()
    assert (await llm.acomplete(QUESTION, documents=[PAGE])).text == MEMORIZED
    assert tries == ["async"] * 3
    tries.clear()
    with pytest.raises(RequestTimeoutError, match="late"):
        llm.complete(QUESTION, max_retries=1)
    assert len(tries) == 2
    for retries in (-1, 1.5, True):
        with pytest.raises(ValueError, match="`max_retries` must be a whole number of 0 or more, got"):
            llm.complete(QUESTION, max_retries=retries)


def test_keys_of_servers_are_accepted_and_kept_secret() -> None:
    llm = Memograft(model="tiny", api_key="sk-1", base_url="http://localhost:1/v1")
    assert llm.api_key is not None
    assert llm.api_key.get_secret_value() == "sk-1"
    assert "sk-1" not in repr(llm) + llm.to_json()
    with pytest.raises(ValueError, match="`base_url` is an argument of the LLM, got 'http://localhost:1/v1': Memogra"):
        MemograftEmbedding(base_url="http://localhost:1/v1")


def test_one_answer_at_a_time(llm: Memograft) -> None:
    match = r"`n` must be 1, got 3: a response of LlamaIndex has one answer; ask several times, or use `llm.engine"
    with pytest.raises(ValueError, match=match):
        Memograft(n=3)
    with pytest.raises(ValueError, match=match):
        llm.complete(QUESTION, n=3)
    assert llm.complete(QUESTION, n=1).text


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("max_new_tokens", r" \(did you mean 'max_tokens'\?\)"),
        ("temprature", r" \(did you mean 'temperature'\?\)"),
        ("repeat_penalty", r" \(did you mean 'repetition_penalty'\?\)"),
        ("memory_id", "; pass the handle that `memorize` returns as `memory`"),
        ("stream", "; call `stream_chat` or `stream_complete`"),
        ("zzz", "; there are: allow_parallel_tool_calls, cad, context_delimiters, "),
    ],
)
def test_a_wrong_name_gets_the_right_one(llm: Memograft, name: str, match: str) -> None:
    with pytest.raises(ValueError, match=f"a call of Memograft has no '{name}'{match}"):
        llm.complete(QUESTION, **{name: 1})
    if name != "zzz":
        with pytest.raises(ValueError, match=match):
            Memograft(**{name: 1})
