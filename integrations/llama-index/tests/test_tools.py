"""Tools: forced calls, calls by the model's choice, agents, and calls that were cut off."""

from __future__ import annotations

from contextlib import suppress

import pytest
from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, TextBlock, ToolCallBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.memograft import Memograft
from llama_index.llms.memograft._errors import ToolCallError
from llama_index.llms.memograft._responses import chat_response
from memograft import Answer, Engine, Timings, Usage
from memograft.chat import Call, InvalidCall, Reading
from pydantic import BaseModel
from workflows.errors import WorkflowRuntimeError


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


@pytest.fixture
def capable(calling: Engine) -> Memograft:
    """A model that has learned to call `get_weather`."""
    return Memograft.from_engine(calling, model="calling", memory=None, max_tokens=60)


def test_arguments_that_are_objects(llm: Memograft) -> None:
    response = llm.chat_with_tools([EITHER, BOTH], user_msg="Both?", tool_choice="both", max_tokens=80)
    (call,) = llm.get_tool_calls_from_response(response)
    assert call.tool_name == "both"
    assert Pair(**call.tool_kwargs["pair"])


def test_tools_that_are_none(llm: Memograft) -> None:
    with pytest.raises(ValueError, match=r"tools\[0\] must be a tool of LlamaIndex or a description in OpenAI's form"):
        llm.chat(ASKED, tools=[either])


def test_a_response_without_a_call(llm: Memograft) -> None:
    response = llm.chat(ASKED)
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match=r"the answer must call a tool, got .*; pass tool_required=True, or"):
        llm.get_tool_calls_from_response(response)


def test_arguments_that_are_text(capable: Memograft) -> None:
    good = ToolCallBlock(tool_name="either", tool_kwargs='{"a": true}')
    bad = ToolCallBlock(tool_name="either", tool_kwargs="not JSON")
    assert capable.chat([*ASKED, ChatMessage(role="assistant", blocks=[good]), *ASKED]).message.content
    with pytest.raises(ValueError, match="the call of 'either' must have a JSON object as arguments, got 'not JSON'"):
        capable.chat([*ASKED, ChatMessage(role="assistant", blocks=[bad]), *ASKED])


@pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")  # LlamaIndex itself
async def test_agents(capable: Memograft, llm: Memograft, random_llm: Memograft) -> None:
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


CUT = {"tool_required": True, "stop": ['":'], "max_tokens": 80}
NOT_WHOLE = r"the call is not whole \(finish_reason='stop'\); pass no `stop` .*; got '\[?\{\"name'$"


async def test_a_call_that_was_cut_off_is_the_text_of_the_message(llm: Memograft) -> None:
    *before, last = llm.stream_chat(ASKED, tools=[EITHER], **CUT)
    responses = [llm.chat(ASKED, tools=[EITHER], **CUT), await llm.achat(ASKED, tools=[EITHER], **CUT), last]
    responses.append([r async for r in await llm.astream_chat(ASKED, tools=[EITHER], **CUT)][-1])
    for response in responses:
        assert response.message.blocks == [TextBlock(text='{"name')]
        (call,) = response.additional_kwargs["invalid_tool_calls"]
        assert response.raw["invalid_tool_calls"] == [call]
        assert (call["name"], call["args"]) == ("either", '{"name')
        for error_on_no_tool_call in (True, False):
            with pytest.raises(ToolCallError, match=NOT_WHOLE):
                llm.get_tool_calls_from_response(response, error_on_no_tool_call=error_on_no_tool_call)
    assert (before, last.delta) == ([], '{"name')
    assert llm.chat([*ASKED, last.message, *ASKED]).message.content
    with pytest.raises(ToolCallError, match=NOT_WHOLE):
        llm.predict_and_call([EITHER], "Is one true?", **CUT)


@pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")  # LlamaIndex itself
@pytest.mark.parametrize("streaming", [True, False])
async def test_agents_do_not_take_a_call_that_was_cut_off_for_their_answer(llm: Memograft, streaming: bool) -> None:
    cut = llm.model_copy(update={"stop": ['":'], "max_tokens": 80})
    agent = FunctionAgent(tools=[EITHER], llm=cut, initial_tool_choice="either", streaming=streaming)
    with pytest.raises(ToolCallError, match=NOT_WHOLE):
        await agent.run("Is one true?", max_iterations=2)


def test_a_call_beside_one_that_cannot_be_executed(llm: Memograft) -> None:
    answer = Answer("...", (), "stop", Usage(1, 0, 1), None, Timings(0, 0, 0))
    call, broken = Call("either", {"a": True, "b": False}, "c1"), InvalidCall(None, "[]", "no name", "c2")
    response = chat_response(answer, Reading("", (call,), (broken,)), "tiny")
    assert response.message.blocks == [ToolCallBlock(tool_call_id="c1", tool_name="either", tool_kwargs=call.arguments)]
    invalid = {"id": "c2", "name": None, "args": "[]", "error": "no name"}
    assert response.additional_kwargs["invalid_tool_calls"] == [invalid]
    with pytest.raises(ToolCallError, match=r"^no name; got '\[\]'$"):
        llm.get_tool_calls_from_response(response)


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
