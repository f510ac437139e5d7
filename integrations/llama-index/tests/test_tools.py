"""Tools: forced on any model, offered to models whose template takes them, and refused loudly where there is no way."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, CitationBlock, TextBlock, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import FunctionTool
from llama_index.llms.memograft import Memograft
from llama_index.llms.memograft._responses import chat_response
from memograft import Answer, Engine, Rtd, Timings, Usage
from memograft.chat import Call, InvalidCall, Reading
from pydantic import BaseModel
from tokenizers_ import make
from workflows.errors import WorkflowRuntimeError

from conftest import Seen, nonsense
from test_chat import ajoined, joined

TOOLS_TEMPLATE = (
    "{{ bos_token }}{% if tools %}<|system|>{{ tools | tojson }}</s>{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% for c in m.get('tool_calls') or [] %}"
    "CALL {{ c['function']['name'] }} {{ c['function']['arguments'] | tojson }}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
RESPONSE_TEMPLATE = {
    "start_anchor": "<|assistant|>",
    "defaults": {"role": "assistant"},
    "fields": {
        "content": {"content": "text"},
        "tool_calls": {
            "open": "[CALL]",
            "close": "[/CALL]",
            "content": "json",
            "repeats": True,
            "transform": "{type: 'function', function: content}",
        },
    },
}


class Pair(BaseModel):
    a: bool
    b: bool


def either(a: bool, b: bool) -> bool:
    """Whether one of them holds."""
    return a or b


def both(pair: Pair) -> bool:
    """Whether both of them hold."""
    return pair.a and pair.b


class Both(BaseModel):
    pair: Pair


EITHER, BOTH = FunctionTool.from_defaults(either), FunctionTool.from_defaults(both, fn_schema=Both)
ASKED = [ChatMessage(role="user", content="Is one true?")]


@pytest.fixture(params=["tiny", "random"])
def any_llm(request: pytest.FixtureRequest, llm: Memograft, random_engine: Engine) -> Memograft:
    """Neither has a place for tools in its template."""
    if request.param == "tiny":
        return llm.model_copy(update={"max_tokens": 80})
    return Memograft.from_engine(random_engine, model="random", max_tokens=100, temperature=1.0, seed=2)


@pytest.fixture(scope="module")
def capable_engine() -> Iterator[Engine]:
    """A random model whose template takes tools, and whose tokenizer reads calls."""
    tokenizer = copy.deepcopy(make("bpe", TOOLS_TEMPLATE))
    tokenizer.response_template = RESPONSE_TEMPLATE
    with Engine(nonsense(), tokenizer) as engine:
        yield engine


@pytest.fixture
def capable(capable_engine: Engine) -> Memograft:
    return Memograft.from_engine(capable_engine, model="capable", max_tokens=8)


async def test_a_call_is_forced_on_any_model(any_llm: Memograft) -> None:
    responses = [
        any_llm.chat_with_tools([EITHER], user_msg="Is one true?", tool_required=True),
        await any_llm.achat_with_tools([EITHER], user_msg="Is one true?", tool_required=True),
        joined(any_llm.stream_chat_with_tools([EITHER], user_msg="Is one true?", tool_required=True))[1][-1],
        (await ajoined(await any_llm.astream_chat_with_tools([EITHER], "Is one true?", tool_required=True)))[1][-1],
    ]
    for response in responses:
        (call,) = any_llm.get_tool_calls_from_response(response)
        assert isinstance(call, ToolSelection)
        assert call.tool_name == "either"
        assert call.tool_id.startswith("call_")
        assert EITHER.call(**call.tool_kwargs).raw_output in (True, False)
        assert response.message.content is None
    assert len({str(any_llm.get_tool_calls_from_response(r)[0].tool_kwargs) for r in responses}) == 1


def test_a_stream_of_a_call_shows_no_markup(any_llm: Memograft) -> None:
    text, responses = joined(any_llm.stream_chat_with_tools([EITHER], "Is one true?", tool_required=True))
    assert text == ""
    assert any_llm.get_tool_calls_from_response(responses[-1])


def test_arguments_that_are_objects(any_llm: Memograft) -> None:
    response = any_llm.chat_with_tools([EITHER, BOTH], user_msg="Both?", tool_choice="both")
    (call,) = any_llm.get_tool_calls_from_response(response)
    assert call.tool_name == "both"
    assert Pair(**call.tool_kwargs["pair"])


def test_several_calls_at_once(any_llm: Memograft) -> None:
    asked = {"user_msg": "Is one true?", "tool_required": True}
    many = any_llm.chat_with_tools([EITHER], allow_parallel_tool_calls=True, **asked)
    assert len(any_llm.get_tool_calls_from_response(many)) >= 1
    assert len(any_llm.get_tool_calls_from_response(any_llm.chat_with_tools([EITHER], **asked))) == 1


@pytest.mark.parametrize("name", ["tiny", "random"])
async def test_tools_with_auto_choice_on_a_model_without_a_tool_template(
    name: str, llm: Memograft, random_llm: Memograft
) -> None:
    """The answer is text, or a call that keeps the tool's schema; streams show what they end with."""
    any_llm = (llm if name == "tiny" else random_llm).model_copy(update={"max_tokens": 100, "memory": None})
    assert any_llm.metadata.is_function_calling_model is True
    assert any_llm.engine.takes_tools is False
    whole = any_llm.chat_with_tools([EITHER], user_msg="Is one true?")
    for call in any_llm.get_tool_calls_from_response(whole, error_on_no_tool_call=False):
        assert EITHER.call(**call.tool_kwargs).raw_output in (True, False)
    text, responses = joined(any_llm.stream_chat_with_tools([EITHER], "Is one true?"))
    assert text == (responses[-1].message.content or "") == (whole.message.content or "")
    again = await any_llm.achat(ASKED, tools=[EITHER])
    assert (again.message.content or "") == text


def test_no_tools_are_no_tools(llm: Memograft) -> None:
    assert llm.chat_with_tools([], user_msg="What is the capital of France?").message.content
    assert llm.chat_with_tools([EITHER], user_msg="Who?", tool_choice="none").message.content


def test_a_choice_that_there_is_not(llm: Memograft) -> None:
    with pytest.raises(ValueError, match=r"`tool_choice` must be .*, got 'neither', and the tools are \['either'\]"):
        llm.chat_with_tools([EITHER], user_msg="Who?", tool_choice="neither")


def test_tools_that_are_none(llm: Memograft) -> None:
    with pytest.raises(ValueError, match=r"tools\[0\] must be a tool of LlamaIndex or a description in OpenAI's form"):
        llm.chat(ASKED, tools=[either])


def test_a_response_without_a_call(llm: Memograft) -> None:
    response = llm.chat(ASKED)
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match=r"the answer must call a tool, got .*; pass tool_required=True, or"):
        llm.get_tool_calls_from_response(response)


def test_the_model_is_told_what_there_is(smollm2: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(smollm2, monkeypatch)
    llm = Memograft.from_engine(smollm2, max_tokens=60, memory=None)
    llm.chat_with_tools([EITHER], user_msg="Is one true?", tool_required=True)
    system, asked = seen.last.messages
    assert '{"name":"either","description":"either(' in system["content"]
    assert asked["content"] == "Is one true?"


def test_a_small_window_has_no_room_for_what_there_is(llm: Memograft, seen: Any) -> None:
    llm.model_copy(update={"max_tokens": 60}).chat_with_tools([EITHER], user_msg="Is one true?", tool_required=True)
    (asked,) = seen.last.messages
    assert asked["content"] == "Is one true?"


def test_calls_and_results_in_a_conversation(capable: Memograft, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(capable.engine, monkeypatch)
    call = ToolCallBlock(tool_name="either", tool_call_id="c1", tool_kwargs={"a": True, "b": False})
    messages = [
        *ASKED,
        ChatMessage(role="assistant", blocks=[call]),
        ChatMessage(role="tool", content="True", additional_kwargs={"tool_call_id": "c1", "name": "either"}),
    ]
    assert capable.chat_with_tools([EITHER], chat_history=messages).message.blocks
    function = {"name": "either", "arguments": {"a": True, "b": False}}
    assert list(seen.last.messages) == [
        {"role": "user", "content": "Is one true?"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "id": "c1", "function": function}]},
        {"role": "tool", "content": "True", "tool_call_id": "c1", "name": "either"},
    ]
    assert 'CALL either {"a": true, "b": false}' in seen.prompt
    assert seen.last.tools[0]["function"]["name"] == "either"


def test_arguments_that_are_text(capable: Memograft) -> None:
    good = ToolCallBlock(tool_name="either", tool_kwargs='{"a": true}')
    bad = ToolCallBlock(tool_name="either", tool_kwargs="not JSON")
    assert capable.chat([*ASKED, ChatMessage(role="assistant", blocks=[good]), *ASKED]).message.content
    with pytest.raises(ValueError, match="the call of 'either' must have a JSON object as arguments, got 'not JSON'"):
        capable.chat([*ASKED, ChatMessage(role="assistant", blocks=[bad]), *ASKED])


async def test_offered_tools_may_be_left_alone(capable: Memograft) -> None:
    assert capable.metadata.is_function_calling_model is True
    response = capable.chat_with_tools([EITHER], user_msg="Is one true?")
    assert response.message.content
    assert capable.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    text, responses = joined(capable.stream_chat_with_tools([EITHER], user_msg="Is one true?"))
    assert text == responses[-1].message.content


def test_offered_tools_and_a_datastore(capable: Memograft) -> None:
    capable = capable.model_copy(update={"max_tokens": 40})
    with capable.build_datastore([(ASKED, "Let me see.")], progress=False) as store:
        rtd = Rtd(store, weight=1.0, gate=None, temperature=1e4)  # where tools are shown the prompt is another
        options = {"tools": [EITHER], "datastore": rtd}
        responses = [capable.chat(ASKED, **options), list(capable.stream_chat(ASKED, **options))[-1]]
    for response in responses:
        text, *citations = response.message.blocks
        assert isinstance(text, TextBlock)
        assert response.message.content == text.text
        assert citations
        for block, about in zip(citations, response.raw["memograft"]["references"]["citations"], strict=True):
            assert isinstance(block, CitationBlock)
            assert text.text[about["start"] : about["end"]].strip()
            assert block.additional_location_info == {"answer_start": about["start"], "answer_end": about["end"]}


@pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")  # LlamaIndex itself
async def test_agents(capable: Memograft, llm: Memograft, random_llm: Memograft) -> None:
    agent = FunctionAgent(tools=[EITHER], llm=capable)
    assert (await agent.run("Is one true?")).response.content is not None
    for any_llm in (llm, capable):
        (made,) = AgentWorkflow.from_tools_or_functions([either], llm=any_llm).agents.values()
        assert isinstance(made, FunctionAgent)
    agent = FunctionAgent(tools=[EITHER], llm=random_llm.model_copy(update={"max_tokens": 100}))
    with suppress(WorkflowRuntimeError):  # nonsense calls tools for ever
        assert (await agent.run("Is one true?", max_iterations=2)).response.content is not None


@pytest.mark.timeout(900)  # the first test of a machine that asks for it waits for its conversion
@pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")  # LlamaIndex's own
async def test_a_function_agent_asks_a_weather_tool(smollm2: Engine) -> None:
    asked: list[str] = []

    def get_weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return f"It is sunny and 21 degrees in {city}."

    llm = Memograft.from_engine(smollm2, memory=None, max_tokens=60)
    agent = FunctionAgent(tools=[FunctionTool.from_defaults(get_weather)], llm=llm)
    output = await agent.run("What is the weather in Paris?", max_iterations=4)
    assert asked[0] == "Paris"
    assert "21" in str(output.response.content)


async def test_predict_and_call(capable: Memograft) -> None:
    wide = capable.model_copy(update={"max_tokens": 100})
    response = wide.predict_and_call([EITHER], "Is one true?", tool_required=True)
    assert response.response in ("True", "False")
    assert (await wide.apredict_and_call([EITHER], "Is one true?", tool_required=True)).sources


def test_what_was_read_becomes_blocks() -> None:
    answer = Answer("", (), "stop", Usage(1, 0, 1), None, Timings(0, 0, 0))
    call = Call("either", {"a": True, "b": False}, "c1")
    response = chat_response(answer, Reading("Let me see.", (call,), reasoning="Hm."), "tiny")
    thinking, text, block = response.message.blocks
    assert (thinking.content, text.text) == ("Hm.", "Let me see.")  # type: ignore[union-attr]
    assert block == ToolCallBlock(tool_call_id="c1", tool_name="either", tool_kwargs=call.arguments)
    assert response.raw["finish_reason"] == response.additional_kwargs["finish_reason"] == "tool_calls"
    assert chat_response(answer, Reading(""), "tiny").message.blocks == [TextBlock(text="")]


def test_a_call_that_was_cut_off_is_an_error() -> None:
    answer = Answer('{"name', (), "length", Usage(1, 0, 1), None, Timings(0, 0, 0))
    broken = InvalidCall("either", answer.text, "the call is not whole; allow more `max_new_tokens`")
    with pytest.raises(ValueError, match=r"the call is not whole; allow more `max_tokens`; got '\{\"name'"):
        chat_response(answer, Reading("", (), (broken,)), "tiny")


def test_a_stream_holds_calls_back(capable: Memograft) -> None:
    call = capable._call(ASKED, {"tools": [EITHER]})
    assert call.plan.reads == "template"
    assert call.plan.shown("Let me see. [CALL]{}") == "Let me see."
    assert call.plan.shown("Let me see.") == "Let me see."


def test_a_template_with_tools_gets_reacts_prompt_word_for_word(capable: Memograft) -> None:
    messages = ReActChatFormatter().format([EITHER], ASKED)
    call = capable._call(messages, {})
    assert (call.react, call.request.tools) == (False, ())
    assert call.request.messages[0]["content"] == messages[0].content
