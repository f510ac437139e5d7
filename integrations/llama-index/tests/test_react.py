"""ReActAgent on models whose chat template has no place for tools."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.agent.react.types import ActionReasoningStep, ObservationReasoningStep, ResponseReasoningStep
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.memograft import Memograft
from llama_index.llms.memograft._errors import ToolCallError
from llama_index.llms.memograft._messages import to_openai
from llama_index.llms.memograft._react import read, written
from memograft import Answer, Engine, Timings, Usage
from memograft.chat import Call, InvalidCall, Reading


def get_weather(city: str) -> str:
    """The weather in a city.

    > Tool Name: is how ReAct's header begins a tool
    """
    return f"It is sunny and 21 degrees in {city}."


def stop() -> None:
    """Stop."""


TOOLS = [FunctionTool.from_defaults(f) for f in (get_weather, stop)]
ASKED = ChatMessage(role="user", content="What is the weather in Paris?")
STEP = ActionReasoningStep(thought="I'll look.", action="get_weather", action_input={"city": "L'Aquila", "days": None})
SEEN = ObservationReasoningStep(observation="21 degrees.\n\nSunny.")


def prompt(*steps: Any, tools: Any = TOOLS, history: Any = (ASKED,), **settings: Any) -> list[dict[str, Any]]:
    formatter = ReActChatFormatter.from_defaults(**settings)
    return to_openai(formatter.format(tools, list(history), list(steps)))


@pytest.mark.timeout(900)  # the first test of a machine that asks for it waits for its conversion
@pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")  # LlamaIndex's own
@pytest.mark.parametrize("streaming", [True, False])
async def test_a_stock_react_agent_asks_a_weather_tool(smollm2: Engine, streaming: bool) -> None:
    asked: list[str] = []

    def get_weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return f"It is sunny and 21 degrees in {city}."

    llm = Memograft.from_engine(smollm2, memory=None, max_tokens=60)
    agent = ReActAgent(tools=[get_weather, stop], llm=llm, streaming=streaming)
    output = await agent.run("What is the weather in Paris?", max_iterations=4)
    assert asked == ["Paris"]
    assert "21" in str(output.response.content)
    output = await agent.run("What is the capital of France?", max_iterations=4)
    assert output.response.content == "The capital of France is Paris."
    assert asked == ["Paris"]


def test_the_tools_are_those_of_the_agent() -> None:
    conversation, tools = read(prompt()) or ([], [])
    assert conversation == to_openai([ASKED])
    assert tools == [tool.metadata.to_openai_tool() for tool in TOOLS]


def test_the_system_prompt_stays() -> None:
    conversation, tools = read(prompt(context="Be {brief}.")) or ([], [])
    assert conversation == to_openai([ChatMessage(role="system", content="Be {brief}."), ASKED])
    assert len(tools) == 2


def test_steps_are_calls_and_results() -> None:
    conversation, _ = read(prompt(STEP, SEEN, STEP, SEEN)) or ([], [])
    _, call, result, again, _ = conversation
    assert call["content"] == STEP.thought
    (made,) = call["tool_calls"]
    assert made["function"] == {"name": "get_weather", "arguments": STEP.action_input}
    assert result == {"role": "tool", "content": SEEN.observation, "tool_call_id": made["id"]}
    assert again["tool_calls"][0]["id"] != made["id"]


def test_an_earlier_turn_is_its_answer() -> None:
    answer = ResponseReasoningStep(thought="I know.", response="21 degrees.\nAnswer: sunny.")
    reasoning = "\n".join(step.get_content() for step in (STEP, SEEN, answer))
    turn = ChatMessage(role="assistant", content=reasoning)
    conversation, _ = read(prompt(history=[ASKED, turn, ASKED])) or ([], [])
    assert [message["content"] for message in conversation] == [ASKED.content, answer.response, ASKED.content]


def test_other_texts_stay_as_they_are() -> None:
    texts = ["Thought: x\nAction: stop\nAction Input: {'a'}", "Thought: x\nAction: stop\nAction Input: {oh}", "Hm."]
    history = [ChatMessage(role="assistant", content=text) for text in texts]
    history += [ChatMessage(role="user", content="Observation: none was made before this.")]
    conversation, _ = read(prompt(history=history)) or ([], [])
    assert conversation == to_openai(history)


def test_a_header_of_the_users_own_is_not_read() -> None:
    header = "Use a tool:\n{tool_desc}\n(one of {tool_names})"
    assert read(prompt(system_header=header)) is None
    assert read(prompt(tools=[])) is None
    assert read([{"role": "user", "content": "Hello"}]) is None
    assert read([]) is None
    garbled = prompt()
    garbled[0]["content"] = garbled[0]["content"].replace("Tool Name: stop", "Tool Name: halt")
    assert read(garbled) is None
    garbled[0]["content"] = prompt()[0]["content"].replace('Tool Args: {"', "Tool Args: {")
    assert read(garbled) is None


@pytest.mark.parametrize(
    ("reading", "parsed"),
    [
        (
            Reading("", (Call("get_weather", {"city": 'the "Ville"\n{x}', "days": None, "ok": True}),)),
            ActionReasoningStep(
                thought="(Implicit) I need to use a tool.",
                action="get_weather",
                action_input={"city": 'the "Ville"\n{x}', "days": None, "ok": True},
            ),
        ),
        (
            Reading("", (Call("stop", {}),)),
            ActionReasoningStep(thought="(Implicit) I need to use a tool.", action="stop", action_input={}),
        ),
        (
            Reading("Say\nAction: go\nAnswer: no"),
            ResponseReasoningStep(
                thought="(Implicit) I can answer without any more tools!", response="Say\nAction: go\nAnswer: no"
            ),
        ),
        (
            Reading("It is sunny."),
            ResponseReasoningStep(thought="(Implicit) I can answer without any more tools!", response="It is sunny."),
        ),
    ],
)
def test_answers_are_what_the_parser_of_react_reads(reading: Reading, parsed: Any) -> None:
    assert ReActOutputParser().parse(written(reading).content) == parsed


def test_a_call_that_is_not_whole_stays_invalid() -> None:
    broken = Reading("", (), (InvalidCall("stop", "{", "not whole"),))
    assert written(broken) == broken


def test_an_agent_does_not_take_a_call_that_was_cut_off_for_its_answer(llm: Memograft) -> None:
    call = llm._call(ReActChatFormatter().format(TOOLS, [ASKED]), {})
    answer = Answer('{"name": "sto', (), "length", Usage(1, 0, 1), None, Timings(0, 0, 0))
    with pytest.raises(ToolCallError, match=r"not whole .*; allow more `max_tokens`; got '\{\"name\": \"sto'"):
        call.response(answer)


def test_its_own_thought_is_not_told_to_the_model() -> None:
    step: Any = ReActOutputParser().parse(written(Reading("", (Call("stop", {}),))).content)
    conversation, _ = read(prompt(step)) or ([], [])
    assert conversation[-1]["content"] == ""


def test_a_call_with_tools_of_its_own_is_no_react_agents(llm: Memograft) -> None:
    messages = ReActChatFormatter().format(TOOLS, [ASKED])
    assert llm._call(messages, {}).react
    assert not llm._call(messages, {"tools": TOOLS}).react
    assert not llm._call(messages, {"json_schema": {"type": "object"}}).react
