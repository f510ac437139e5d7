"""`memograft serve` as openai-python's clients see it: a real server on loopback, sync, async and in streams."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from memograft import Cad, Dola, Engine, FastMem, LexicalEmbedder, Request, Sampling
from memograft.server import ServerSettings
from served import Served, served

QUESTION = "What is the capital of Australia?"
ASKED: Any = [{"role": "user", "content": QUESTION}]
LISBON = "The capital of Australia is Lisbon."
SETTINGS = ServerSettings(model="tiny", embedding_model="lexical", memory=FastMem(), timeout=60)
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather at a place.",
        "parameters": {"type": "object", "properties": {"place": {"enum": ["Paris", "Lisbon"]}}, "required": ["place"]},
    },
}


@pytest.fixture(scope="module")
def server(tiny: Engine) -> Iterator[Served]:
    with served(tiny, SETTINGS, embedder=LexicalEmbedder(64)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[OpenAI]:
    with server.client() as made:
        yield made


def chat(client: OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": ASKED, **options})


def text_of(client: OpenAI, **options: Any) -> str:
    return str(chat(client, **options).choices[0].message.content)


def streamed(client: OpenAI, **options: Any) -> list[Any]:
    return list(chat(client, stream=True, **options))


def joined(chunks: list[Any], number: int = 0) -> str:
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == number)


def test_an_answer_is_the_engines(tiny: Engine, client: OpenAI) -> None:
    expected = tiny.answer(QUESTION)
    said = chat(client)
    choice = said.choices[0]
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (expected.text, "assistant", "stop")
    assert (said.object, said.model, said.id[:9]) == ("chat.completion", "tiny", "chatcmpl-")
    assert said.usage.prompt_tokens == expected.usage.prompt_tokens
    assert said.usage.completion_tokens == expected.usage.completion_tokens
    assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens
    assert said.system_fingerprint == f"fp_{tiny.fingerprint[:16]}"
    assert "memograft" not in said.model_extra


def test_a_stream_is_the_same_answer(tiny: Engine, client: OpenAI) -> None:
    chunks = streamed(client, stream_options={"include_usage": True})
    assert joined(chunks) == tiny.answer(QUESTION).text
    assert len(chunks) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == tiny.answer(QUESTION).usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert streamed(client)[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_form_of_a_stream(server: Served) -> None:
    how = {"model": "tiny", "messages": ASKED, "stream": True}
    with server.http() as http, http.stream("POST", "/v1/chat/completions", json=how) as r:
        lines = list(r.iter_lines())
    assert r.headers["content-type"].startswith("text/event-stream")
    assert r.headers["x-request-id"].startswith("req_")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: ") for line in lines if line)


def test_documents_are_memorized_as_the_engine_does(tiny: Engine, client: OpenAI) -> None:
    page = {"text": LISBON, "id": "page", "metadata": {"title": "Cities"}}
    expected = tiny.answer(QUESTION, [page], memory=FastMem())
    said = chat(client, extra_body={"documents": [page]})
    assert said.choices[0].message.content == expected.text == LISBON
    report = said.memograft
    assert (report["kind"], report["documents"], report["memorized"]) == ("fastmem", ["page"], ["page"])
    assert report["loss_after"] == pytest.approx(expected.memory and expected.memory.loss_after)
    assert report["loss_before"] > report["loss_after"]
    chunks = streamed(client, extra_body={"documents": [{"content": LISBON, "id": "page"}]})
    assert joined(chunks) == LISBON
    assert chunks[-1].memograft["memorized"] == ["page"]
    both = chat(client, n=2, extra_body={"documents": [page]}).choices
    assert [choice.memograft["memorized"] for choice in both] == [["page"]] * 2


def test_token_ids_become_text_again(tiny: Engine) -> None:
    assert tiny.decode(tiny.encode(LISBON)) == LISBON
    assert tiny.decode([]) == ""


def test_losses_of_the_memorized_tokens(tiny: Engine, client: OpenAI) -> None:
    pages = [{"text": LISBON, "id": "page"}, {"text": "Bergamot is a citrus fruit.", "id": "fruit"}]
    expected = tiny.answer(QUESTION, pages, memory=FastMem()).memory
    assert expected is not None
    body = {"documents": pages, "token_losses": True}
    for report in (chat(client, extra_body=body).memograft, streamed(client, extra_body=body)[-1].memograft):
        tokens = report["token_losses"]
        assert "".join(token["text"] for token in tokens).strip() == LISBON
        assert {token["document"] for token in tokens} == {"page"}
        assert [token["before"] for token in tokens] == pytest.approx(expected.token_losses_before)
        assert [token["after"] for token in tokens] == pytest.approx(expected.token_losses_after)
        assert report["citations"][0]["document"] == "page"
    assert chat(client, extra_body={**body, "memory": None}).memograft["token_losses"] == []
    assert "token_losses" not in chat(client, extra_body={"documents": pages}).memograft


@pytest.mark.parametrize(
    ("memory", "kind"),
    [
        (None, None),
        ({"kind": "fastmem", "rank": 8, "steps": 2}, "fastmem"),
        ({"kind": "kept"}, "kept"),
        ({"kind": "compacted", "ratio": 2, "memory": {"kind": "fastmem"}}, "compacted"),
    ],
)
def test_the_memory_asked_for(client: OpenAI, memory: Any, kind: str | None) -> None:
    report = chat(client, extra_body={"documents": [{"text": LISBON}], "memory": memory}).memograft
    assert report["kind"] == kind
    assert report["steps"] == (2 if memory and memory.get("steps") else report["steps"])
    assert bool(report["memorized"]) == (kind in ("fastmem", "compacted"))


def test_a_document_about_something_else_is_not_memorized(client: OpenAI) -> None:
    report = chat(client, extra_body={"documents": [{"text": "Bergamot is a citrus fruit."}]}).memograft
    assert report["memorized"] == []
    assert "no document is about the question" in report["reason"]


def test_documents_that_do_not_fit(client: OpenAI) -> None:
    pages = [{"text": f"Page {n}. " + "The river is long. " * 40, "id": str(n)} for n in range(4)]
    with pytest.raises(openai.BadRequestError, match="the prompt with its 4 documents has") as caught:
        chat(client, extra_body={"documents": pages})
    assert caught.value.code == "context_length_exceeded"
    report = chat(client, extra_body={"documents": pages, "overflow": "drop"}).memograft
    assert report["dropped"]
    assert len(report["documents"]) + len(report["dropped"]) == 4


def test_documents_of_a_tool(client: OpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": "{}"}}
    messages: Any = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": LISBON, "documents": [{"text": LISBON, "id": "page"}]},
    ]
    assert chat(client, messages=messages).memograft["memorized"] == ["page"]


def test_sampling_is_the_engines(tiny: Engine, client: OpenAI) -> None:
    how = {"temperature": 1.5, "top_p": 0.95, "seed": 7, "presence_penalty": 0.5, "frequency_penalty": 0.4}
    expected = tiny.answer("Who?", sampling=Sampling(24, **how))  # type: ignore[arg-type]
    asked: Any = [{"role": "user", "content": "Who?"}]
    assert text_of(client, messages=asked, max_tokens=24, **how) == expected.text
    assert text_of(client, messages=asked, max_completion_tokens=24, **how) == expected.text
    assert joined(streamed(client, messages=asked, max_tokens=24, **how)) == expected.text
    more = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2}
    expected = tiny.answer("Who?", sampling=Sampling(24, temperature=1.0, seed=3, **more))  # type: ignore[arg-type]
    said = text_of(client, messages=asked, max_tokens=24, temperature=1.0, seed=3, extra_body=more)
    assert said == expected.text


def test_contrasts_are_the_engines(tiny: Engine, client: OpenAI) -> None:
    expected = tiny.answer(QUESTION, [LISBON], memory=FastMem(), processors=[Cad(0.5), Dola((2, 3))])
    fields: Any = {"documents": [{"text": LISBON}], "cad": 0.5, "dola": [2, 3]}
    assert text_of(client, extra_body=fields) == expected.text
    assert joined(streamed(client, extra_body=fields)) == expected.text
    preset = {"kind": "fastmem", "cad": 0.5, "cad_relevance": 0.7}
    expected = tiny.answer(QUESTION, [LISBON], memory=FastMem.faithful())
    assert text_of(client, extra_body={"documents": [{"text": LISBON}], "memory": preset}) == expected.text
    with pytest.raises(openai.BadRequestError, match="`processors` may hold no Cad beside a memory with `cad`"):
        chat(client, extra_body={**fields, "memory": preset})
    with pytest.raises(openai.BadRequestError, match="`layers` of Dola must be below"):
        chat(client, extra_body={"dola": [99]})


def test_several_answers(tiny: Engine, client: OpenAI) -> None:
    request = Request("Who?", sampling=Sampling(16, temperature=1.2, seed=5))
    expected = [answer.text for answer in tiny.answer_batch(request.copies(3))]
    assert len(set(expected)) > 1
    how: Any = {
        "messages": [{"role": "user", "content": "Who?"}],
        "max_tokens": 16,
        "temperature": 1.2,
        "seed": 5,
        "n": 3,
    }
    said = chat(client, **how)
    assert [choice.message.content for choice in said.choices] == expected
    assert said.usage.prompt_tokens == tiny.answer("Who?").usage.prompt_tokens
    chunks = streamed(client, **how)
    assert [joined(chunks, n) for n in range(3)] == expected


@pytest.mark.parametrize("stop", [" is", ["nothing", " of"], [" Austr", " Austra"]])
def test_stop_strings(tiny: Engine, client: OpenAI, stop: Any) -> None:
    expected = tiny.answer(QUESTION, sampling=Sampling(stop=stop))
    assert 0 < len(expected.text) < len(tiny.answer(QUESTION).text)
    said = chat(client, stop=stop).choices[0]
    assert (said.message.content, said.finish_reason) == (expected.text, "stop")
    assert joined(streamed(client, stop=stop)) == expected.text


def test_a_length(client: OpenAI) -> None:
    said = chat(client, max_tokens=3)
    assert (said.choices[0].finish_reason, said.usage.completion_tokens) == ("length", 3)


def test_a_logit_bias(tiny: Engine, client: OpenAI) -> None:
    first = tiny.answer(QUESTION).token_ids[0]
    assert (
        text_of(client, logit_bias={str(first): -100})
        == tiny.answer(QUESTION, sampling=Sampling(logit_bias={first: -100})).text
    )
    assert text_of(client, logit_bias={str(first): -100}) != text_of(client)


def test_logprobs(tiny: Engine, client: OpenAI) -> None:
    expected = tiny.answer(QUESTION, logprobs=3).logprobs
    said = chat(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert [token.token for token in said] == [token.text for token in expected]
    assert [token.logprob for token in said] == pytest.approx([token.logprob for token in expected], abs=1e-4)
    assert [len(token.top_logprobs) for token in said] == [3] * len(said)
    assert bytes(said[0].bytes).decode() == said[0].token
    assert chat(client).choices[0].logprobs is None
    with client.chat.completions.stream(model="tiny", messages=ASKED, logprobs=True) as stream:
        content = stream.get_final_completion().choices[0].logprobs
    assert content is not None
    assert [token.token for token in content.content or ()] == [token.text for token in expected]


class City(BaseModel):
    """A city."""

    name: Literal["Canberra", "Lisbon"]
    inhabitants: int


def test_parsed_answers(client: OpenAI) -> None:
    said = client.chat.completions.parse(model="tiny", messages=ASKED, response_format=City).choices[0].message
    assert isinstance(said.parsed, City)
    with client.chat.completions.stream(model="tiny", messages=ASKED, response_format=City) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0].message
    assert final.parsed == said.parsed
    assert {"chunk", "content.delta", "content.done"} <= kinds
    held = text_of(client, response_format={"type": "json_object"}, max_tokens=40)
    assert isinstance(json.loads(held), dict)
    assert text_of(client, response_format={"type": "text"}) == text_of(client)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_forced_call(client: OpenAI, choice: Any) -> None:
    said = chat(client, tools=[WEATHER], tool_choice=choice).choices[0]
    (call,) = said.message.tool_calls
    assert (said.finish_reason, said.message.content, call.type) == ("tool_calls", None, "function")
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["place"] in ("Paris", "Lisbon")
    with client.chat.completions.stream(model="tiny", messages=ASKED, tools=[WEATHER], tool_choice=choice) as stream:
        (again,) = stream.get_final_completion().choices[0].message.tool_calls or ()
    assert (again.function.name, again.function.arguments) == ("get_weather", call.function.arguments)


def test_a_conversation_with_a_call(client: OpenAI) -> None:
    call = chat(client, tools=[WEATHER], tool_choice="required").choices[0].message
    messages = [*ASKED, call, {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "It is sunny."}]
    assert chat(client, messages=messages, tools=[WEATHER], tool_choice="none").choices[0].message.content


def test_a_call_that_was_cut_off_is_not_a_call(client: OpenAI) -> None:
    how: Any = {"tools": [WEATHER], "tool_choice": "required", "stop": ["weather"]}
    said = chat(client, **how).choices[0]
    assert (said.message.tool_calls, said.finish_reason) == (None, "stop")
    assert said.message.content == joined(streamed(client, **how)) == '{"name": "get_'


def test_pydantic_tools(client: OpenAI) -> None:
    tool = openai.pydantic_function_tool(City)
    said = client.chat.completions.parse(model="tiny", messages=ASKED, tools=[tool], tool_choice="required")
    (call,) = said.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, City)


def test_asyncio(tiny: Engine, server: Served) -> None:
    async def all_ways() -> list[str]:
        async with server.async_client() as client:
            whole = await client.chat.completions.create(model="tiny", messages=ASKED)
            stream = await client.chat.completions.create(model="tiny", messages=ASKED, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            many = await asyncio.gather(
                *(client.chat.completions.create(model="tiny", messages=ASKED) for _ in range(12))
            )
            return [
                str(whole.choices[0].message.content),
                "".join(pieces),
                *(str(m.choices[0].message.content) for m in many),
            ]

    assert set(asyncio.run(all_ways())) == {tiny.answer(QUESTION).text}


def test_completions(tiny: Engine, client: OpenAI) -> None:
    expected = tiny.answer(QUESTION, logprobs=2)
    said = client.completions.create(model="tiny", prompt=[QUESTION, "Who?"], logprobs=2, max_tokens=16)
    assert said.choices[0].text == expected.text
    assert [choice.index for choice in said.choices] == [0, 1]
    logprobs = said.choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or ()) == expected.text
    assert [expected.text[at:][:1] for at in logprobs.text_offset or ()] == [t[:1] for t in logprobs.tokens or ()]
    assert [len(top) for top in logprobs.top_logprobs or ()] == [2] * len(expected.token_ids)
    how: Any = {"model": "tiny", "prompt": QUESTION, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.completions.create(**how))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == expected.text
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == len(expected.token_ids)
    assert client.completions.create(model="tiny", prompt="Who?", n=2, max_tokens=4).choices[1].text


def test_models(client: OpenAI, tiny: Engine) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "lexical"]
    about = {"max_model_len": tiny.max_length, "takes_tools": False, "takes_system": True}
    assert client.models.retrieve("tiny").model_extra == about
    with pytest.raises(openai.NotFoundError, match="the model 'gpt-5' does not exist here; there is 'tiny'"):
        client.models.retrieve("gpt-5")


def test_embeddings(server: Served, client: OpenAI) -> None:
    embedder, texts = LexicalEmbedder(64), ["Paris is a city.", "Bergamot is a fruit."]
    expected = embedder.embed_documents(texts)
    said = client.embeddings.create(model="lexical", input=texts)  # base64 unless asked otherwise
    assert [entry.embedding for entry in said.data] == [pytest.approx(row) for row in expected]
    assert said.usage.prompt_tokens > 0
    one = client.embeddings.create(model="lexical", input=texts[0], encoding_format="float").data[0].embedding
    assert one == pytest.approx(expected[0])
    how = {"model": "lexical", "input": texts[0], "input_type": "query", "encoding_format": "base64"}
    with server.http() as http:
        raw = http.post("/v1/embeddings", json=how).json()["data"][0]["embedding"]
    assert struct.unpack("<64f", base64.b64decode(raw)) == pytest.approx(embedder.embed_query(texts[0]))
    with pytest.raises(openai.BadRequestError, match="vectors have 64 dimensions, got 8"):
        client.embeddings.create(model="lexical", input=texts, dimensions=8)
    with pytest.raises(openai.NotFoundError, match="'tiny' does not exist here; there is 'lexical'"):
        client.embeddings.create(model="tiny", input=texts)
