"""/v1/responses as openai-python's clients see it: whole, in streams, parsed, with tools, sync and async."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from conformance.calling import WEATHER_CALL, WEATHER_TOOL, trained_engine
from memograft import Engine, FastMem, Request, Sampling
from memograft.server import ServerSettings
from served import Served, served
from test_server import LISBON, QUESTION, WEATHER, City
from test_server_rows import held, limits

PAGE = {"text": LISBON, "id": "page"}
TOOL: Any = {"type": "function", **WEATHER["function"], "strict": False}


@pytest.fixture(scope="module")
def server(tiny: Engine) -> Iterator[Served]:
    with served(tiny, ServerSettings(model="tiny", timeout=60)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[OpenAI]:
    with server.client() as made:
        yield made


def made(client: OpenAI, **options: Any) -> Any:
    return client.responses.create(**{"model": "tiny", "input": QUESTION, **options})


def test_an_answer_is_the_engines(tiny: Engine, client: OpenAI) -> None:
    expected = tiny.answer(QUESTION)
    said = made(client)
    assert (said.output_text, said.status, said.object, said.store) == (expected.text, "completed", "response", False)
    assert (said.usage.input_tokens, said.usage.output_tokens) == (
        expected.usage.prompt_tokens,
        expected.usage.completion_tokens,
    )
    assert said.usage.total_tokens == said.usage.input_tokens + said.usage.output_tokens
    (message,) = said.output
    assert (message.role, message.status, message.content[0].logprobs) == ("assistant", "completed", [])
    assert made(client, store=False, background=False, truncation="disabled").output_text == expected.text


def test_a_length_and_sampling(tiny: Engine, client: OpenAI) -> None:
    cut = made(client, max_output_tokens=3)
    assert (cut.status, cut.incomplete_details.reason, cut.usage.output_tokens) == (
        "incomplete",
        "max_output_tokens",
        3,
    )
    last = list(made(client, max_output_tokens=3, stream=True))[-1]
    assert (last.type, last.response.output_text) == ("response.incomplete", cut.output_text)
    more = {"top_k": 1, "repetition_penalty": 1.3}
    expected = tiny.answer(QUESTION, sampling=Sampling(temperature=0.7, top_p=0.9, **more))  # type: ignore[arg-type]
    said = made(client, temperature=0.7, top_p=0.9, extra_body=more)
    assert (said.output_text, said.temperature, said.top_p) == (expected.text, 0.7, 0.9)


def test_a_conversation(tiny: Engine, client: OpenAI) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": QUESTION},
    ]
    expected = tiny.answer_batch([Request(messages=messages)])[0]
    items: Any = [
        {"role": "user", "content": "Hello!"},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Hello.", "annotations": []}],
        },
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
    ]
    said = made(client, input=items, instructions="Be brief.")
    assert said.usage.input_tokens == expected.usage.prompt_tokens
    assert (said.output_text, said.instructions) == (expected.text, "Be brief.")
    again = made(client, input=[{"role": "user", "content": "Hello!"}, *said.output, *items[-1:]])
    assert again.status == "completed"


def test_a_stream_has_openais_events(tiny: Engine, server: Served, client: OpenAI) -> None:
    expected = tiny.answer(QUESTION).text
    events = list(made(client, stream=True))
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert deltas > 5
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == [*range(len(events))]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == expected
    assert events[-1].response.output_text == expected
    assert events[-1].response.id == events[0].response.id
    assert {event.item_id for event in events[4:-2]} == {events[-1].response.output[0].id}
    body = {"model": "tiny", "input": QUESTION, "stream": True}
    with server.http() as http, http.stream("POST", "/v1/responses", json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[0] == "event: response.created"
    assert [json.loads(line[6:])["type"] for line in lines[1::2]] == [line[7:] for line in lines[::2]] == kinds


def test_parsed_answers(client: OpenAI) -> None:
    said = client.responses.parse(model="tiny", input=QUESTION, text_format=City)
    assert isinstance(said.output_parsed, City)
    with client.responses.stream(model="tiny", input=QUESTION, text_format=City) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert final.output_parsed == said.output_parsed
    assert {"response.output_text.delta", "response.output_text.done", "response.completed"} <= kinds
    held = made(client, text={"format": {"type": "json_object"}}, max_output_tokens=40)
    assert isinstance(json.loads(held.output_text), dict)
    assert said.text is not None
    assert said.text.format is not None
    assert said.text.format.type == "json_schema"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_function_is_called_and_its_output_read(client: OpenAI, choice: Any) -> None:
    said = made(client, tools=[TOOL], tool_choice=choice)
    (call,) = said.output
    assert (call.type, call.name, said.status, said.output_text) == ("function_call", "get_weather", "completed", "")
    assert json.loads(call.arguments)["place"] in ("Paris", "Lisbon")
    events = list(made(client, tools=[TOOL], tool_choice=choice, stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[3].delta == events[4].arguments == call.arguments
    output = {"type": "function_call_output", "call_id": call.call_id, "output": LISBON, "documents": [PAGE]}
    asked = [{"role": "user", "content": QUESTION}, *said.output, output]
    read = made(client, input=asked, tools=[TOOL], tool_choice="none")
    assert read.output_text == LISBON
    assert read.memograft["memorized"] == ["page"]


def test_pydantic_functions(client: OpenAI) -> None:
    tool: Any = openai.pydantic_function_tool(City)
    flat: Any = {"type": "function", **tool["function"]}
    said = client.responses.parse(model="tiny", input=QUESTION, tools=[flat], tool_choice="required")
    (call,) = said.output
    assert call.type == "function_call"
    City.model_validate_json(call.arguments)


def test_documents_are_memorized(tiny: Engine, client: OpenAI) -> None:
    expected = tiny.answer(QUESTION, [PAGE], memory=FastMem())
    said = made(client, extra_body={"documents": [PAGE], "token_losses": True})
    assert said.output_text == expected.text == LISBON
    assert (said.memograft["kind"], said.memograft["memorized"]) == ("fastmem", ["page"])
    assert said.memograft["citations"][0]["document"] == "page"
    assert said.memograft["token_losses"]
    last = list(made(client, stream=True, extra_body={"documents": [PAGE]}))[-1].response
    assert (last.output_text, last.memograft["memorized"]) == (LISBON, ["page"])
    assert made(client, extra_body={"documents": [PAGE], "memory": None}).memograft["kind"] is None
    assert not hasattr(made(client), "memograft")


def test_a_store_is_searched(server: Served, client: OpenAI) -> None:
    with server.http() as http:
        http.post("/v1/stores", json={"name": "docs"}).raise_for_status()
        http.post("/v1/stores/docs/documents", json={"documents": [PAGE]}).raise_for_status()
    said = made(client, extra_body={"store": {"name": "docs", "k": 1}})
    assert said.output_text == LISBON
    assert said.memograft["retrieved"][0]["cited"]


def test_logprobs(tiny: Engine, client: OpenAI) -> None:
    expected = tiny.answer(QUESTION, logprobs=2).logprobs
    said = made(client, include=["message.output_text.logprobs"], top_logprobs=2).output[0].content[0].logprobs
    assert [token.token for token in said] == [token.text for token in expected]
    assert [token.logprob for token in said] == pytest.approx([token.logprob for token in expected], abs=1e-4)
    assert {len(token.top_logprobs) for token in said} == {2}


def test_reasoning_text_and_a_call_in_one_answer() -> None:
    said = f"<think>Hm.</think>Let me see.<tool_call>{json.dumps(WEATHER_CALL)}</tool_call>"
    engine = trained_engine([([{"role": "user", "content": "Is it sunny?"}], [WEATHER_TOOL], said)])
    template = engine.tokenizer.response_template
    thinking = {"open": "<think>", "close": "</think>", "content": "text"}
    engine.tokenizer.response_template = {**template, "fields": {"thinking": thinking, **template["fields"]}}
    how: Any = {"model": "m", "input": "Is it sunny?", "tools": [{"type": "function", **WEATHER_TOOL["function"]}]}  # type: ignore[dict-item]
    with engine, served(engine, ServerSettings(model="m", timeout=60)) as server, server.client() as client:
        whole = client.responses.create(**how)
        events = list(client.responses.create(**how, stream=True))
        again = client.responses.create(**{**how, "input": [{"role": "user", "content": "Is it?"}, *whole.output]})
    message, thought, call = whole.output
    assert (whole.output_text, message.type) == ("Let me see.", "message")
    assert (thought.type, thought.content[0].text) == ("reasoning", "Hm.")  # type: ignore[union-attr,index]
    assert (call.type, json.loads(call.arguments)) == ("function_call", WEATHER_CALL["arguments"])  # type: ignore[union-attr]
    last = events[-1].response  # type: ignore[union-attr]
    assert [item.type for item in last.output] == [item.type for item in whole.output]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert done == last.output
    assert again.status


def test_asyncio(tiny: Engine, server: Served) -> None:
    async def both() -> list[str]:
        async with server.async_client() as client:
            whole = await client.responses.create(model="tiny", input=QUESTION)
            async with client.responses.stream(model="tiny", input=QUESTION) as stream:
                streamed = await stream.get_final_response()
            parsed = await client.responses.parse(model="tiny", input=QUESTION, text_format=City)
            assert parsed.output_parsed is not None
            return [whole.output_text, streamed.output_text]

    assert set(asyncio.run(both())) == {tiny.answer(QUESTION).text}


def test_a_timeout_in_a_stream_is_an_event(make_engine: Any) -> None:
    engine = make_engine(max_batch=4)
    with served(engine, limits(timeout=1.5)) as server, held(engine, free=10**6) as gate, server.client() as client:
        events = iter(client.responses.create(model="m", input="Who wrote it?", max_output_tokens=200, stream=True))
        assert next(events).type == "response.created"
        gate.free = 0
        rest = list(events)
        gate.go.set()
    error = rest[-1]
    assert error.type == "error"
    assert (error.code, error.sequence_number) == ("request_timeout", len(rest))
    assert "`timeout` passed" in error.message


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole conversation"),
    ({"conversation": "conv_1"}, "conversation", "send the whole conversation"),
    ({"store": True}, "store", "Answers are not stored"),
    ({"background": True}, "background", "wait for the answer"),
    ({"tools": [{"type": "web_search"}]}, "tools", "no tools of its own"),
    ({"truncation": "auto"}, "truncation", "see `overflow`"),
    ({"prompt": {"id": "p"}}, "prompt", "no stored prompts"),
    ({"include": ["reasoning.encrypted_content"]}, "include", "Log-probabilities are all"),
    ({"reasoning": {"effort": "high"}}, "reasoning", "no such setting"),
    ({"text": {"verbosity": "low"}}, "text", "no other verbosity"),
    ({"text": {"format": {"type": "xml"}}}, "text", "'text', 'json_object', 'json_schema'"),
    ({"metadata": {"a": "b"}}, "metadata", "nothing can be attached"),
    ({"max_tool_calls": 2}, "max_tool_calls", "calls no tools"),
    ({"max_output_tokens": 10**6}, "max_output_tokens", "`max_output_tokens` may be 512"),
    ({"input": []}, "input", "at least 1 item"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input", "must be a message, function_call"),
    ({"input": [{"role": "king", "content": "x"}]}, "input", "`input.0.message.role`: input should be"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "",
        r"input\[0\].content\[0\] is an image",
    ),
    ({"extra_body": {"max_tokens": 5}}, "max_tokens", "no 'max_tokens'"),
    ({"extra_body": {"n": 2}}, "n", "no 'n'"),
    ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice", "or the name of a tool, got"),
    ({"model": "gpt-5"}, "model", "does not exist here"),
]


@pytest.mark.parametrize(("options", "param", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_done_is_refused(client: OpenAI, options: Any, param: str, message: str) -> None:
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        made(client, **options)
    assert caught.value.param == (param or None)
    assert caught.value.type == "invalid_request_error"
