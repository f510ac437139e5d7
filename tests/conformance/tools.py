"""Tools: forced calls on any model, calls by the model's choice, tools described in the prompt, and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from conformance.calling import SEINE, WEATHER, WEATHER_CALL, WEATHER_TOOL, get_weather
from conformance.case import Case
from conformance.fixtures import Seen
from conformance.front import Front, Said, user
from conformance.pages import QUESTION
from conformance.sameness import LOOK, WEATHER_ASKED, every_way
from memograft import Engine
from memograft.errors import SettingsError

__all__ = ["Tools"]

CALL = ("get_weather", WEATHER_CALL["arguments"])


def either(a: bool, b: bool) -> bool:
    """Whether one of them is true."""
    return a or b


def checked(said: Said) -> None:
    """Each call names `either`, and the tool accepts its arguments."""
    for name, arguments in said.calls:
        assert name == "either"
        assert either(**arguments) in (True, False)


class Tools(Case):
    """Tool calls and their results."""

    @pytest.fixture(params=["tiny", "random"])
    def any_chat(self, request: pytest.FixtureRequest, tiny: Engine, random_engine: Engine) -> Front:
        """Two models whose chat templates have no place for tools."""
        if request.param == "tiny":
            return self.front.over(tiny, memory=None, max_tokens=80)
        return self.front.over(random_engine, memory=None, max_tokens=100, temperature=1.0, seed=2)

    @pytest.fixture
    def able(self, calling: Engine) -> Front:
        """A model trained to call `get_weather`."""
        return self.front.over(calling, model="calling", memory=None, max_tokens=100)

    @pytest.mark.parametrize(
        "choice", ["any", "required", True, "either", {"type": "function", "function": {"name": "either"}}]
    )
    def test_a_call_is_forced_on_any_model(self, any_chat: Front, choice: Any) -> None:
        options = {"tools": [any_chat.tool(either)], "tool_choice": choice}
        every = (
            every_way(any_chat, user(QUESTION), **options)
            if choice == "any"
            else [any_chat.ask(user(QUESTION), **options)]
        )
        for said in every:
            assert (len(said.calls), said.text, said.finish_reason) == (1, "", "tool_calls")
            checked(said)
        assert len({str(said.calls) for said in every}) == 1

    @pytest.mark.parametrize("choice", [None, "auto"])
    def test_a_choice_for_a_model_without_a_tool_template(self, any_chat: Front, choice: str | None) -> None:
        """The answer is text or a call that follows the tool's schema, and streams end with the same answer."""
        assert any_chat.engine.takes_tools is False
        answers = every_way(any_chat, user(QUESTION), tools=[any_chat.tool(either)], tool_choice=choice)
        for said in answers:
            assert said.text or said.calls
            checked(said)
        assert len({(said.text, str(said.calls)) for said in answers}) == 1

    def test_a_model_calls_a_tool_by_its_own_choice(self, able: Front, seen_calling: Seen) -> None:
        asked = user(WEATHER)
        called = able.ask(asked, tools=[WEATHER_TOOL])
        assert (called.calls, called.text, called.finish_reason) == ((CALL,), "", "tool_calls")
        result = {"role": "tool", "tool_call_id": "c1", "content": get_weather("here")}
        assert able.ask([*asked, called.message, result], tools=[WEATHER_TOOL]).text == "It's sunny."
        function = {"name": "get_weather", "arguments": WEATHER_CALL["arguments"]}
        call = dict(seen_calling.last.messages[1]["tool_calls"][0])
        assert call.pop("id").startswith("call_")
        assert call == {"type": "function", "function": function}
        assert seen_calling.last.messages[2]["role"] == "tool"
        assert seen_calling.last.tools[0]["function"]["name"] == "get_weather"
        assert able.text("Hello") == SEINE

    def test_results_are_told_where_the_template_has_no_place_for_them(self, plain: Front, seen: Seen) -> None:
        said = plain.ask(WEATHER_ASKED, tools=[WEATHER_TOOL])
        assert said.text or said.calls
        roles, contents = zip(*seen.messages[-3:], strict=True)
        assert roles == ("user", "assistant", "user")
        assert json.loads(contents[1]) == WEATHER_CALL
        assert contents[2].startswith("Result of get_weather: It's sunny.")
        assert WEATHER in contents[2]

    def test_a_call_that_was_cut_off(self, able: Front, any_chat: Front) -> None:
        short: dict[str, Any] = {"tools": [WEATHER_TOOL], "max_tokens": 8}
        (error,) = able.ask(user(WEATHER), **short).invalid
        assert error.startswith("the answer cannot be parsed: ")
        assert error.endswith("; allow more `max_tokens`")
        for said in every_way(able, user(WEATHER), **short):
            assert (said.calls, len(said.invalid), said.finish_reason) == ((), 1, "length")
        for stop in ('":', ","):
            cut = {"tools": [any_chat.tool(either)], "tool_choice": "any", "stop": [stop]}
            (error,) = any_chat.ask(user(QUESTION), **cut).invalid
            assert error == "the call is not whole (finish_reason='stop'); pass no `stop` string that occurs in a call"
            for said in every_way(any_chat, user(QUESTION), **cut):
                assert (said.calls, len(said.invalid), said.finish_reason) == ((), 1, "stop")

    @pytest.mark.parametrize("choice", ["neither", 3, {"name": "neither"}])
    def test_a_tool_that_there_is_not(self, plain: Front, choice: Any) -> None:
        with pytest.raises(SettingsError, match=r"`tool_choice` must be .*, got .*, and the tools are \['either'\]"):
            plain.ask(user(QUESTION), tools=[plain.tool(either)], tool_choice=choice)

    def test_the_model_is_told_what_there_is(self, smollm2: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = Seen(smollm2, monkeypatch)
        chat = self.front.over(smollm2, max_tokens=60, memory=None)
        chat.ask(user("Is one true?"), tools=[LOOK], tool_choice="any")
        (_, system), asked = seen.messages
        assert '{"name":"look","description":"Look it up."' in system
        assert asked == ("user", "Is one true?")
