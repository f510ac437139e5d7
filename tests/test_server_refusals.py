"""What a server refuses, with an error in OpenAI's form: it is never ignored, and never an internal error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import NOT_GIVEN, OpenAI

from memograft import Engine, LexicalEmbedder
from memograft.server import ServerSettings
from served import served
from test_server import WEATHER, chat, text_of


@pytest.fixture(scope="module")
def client(tiny: Engine) -> Iterator[OpenAI]:
    settings = ServerSettings(model="tiny", embedding_model="lexical", timeout=60)
    with served(tiny, settings, embedder=LexicalEmbedder(64)) as server, server.client() as made:
        yield made


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"model": "gpt-5"}, "model", "the model 'gpt-5' does not exist here"),
    ({"messages": []}, "messages", "`messages`: list should have at least 1 item"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages", "`messages.0.role`: input should be 'system',"),
    (
        {"extra_body": {"temprature": 1}},
        "temprature",
        "no 'temprature' \\(did you mean 'temperature'\\?\\); there are:",
    ),
    ({"temperature": 3}, "temperature", "input should be less than or equal to 2, got 3"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1, got 0"),
    ({"max_tokens": 10**6}, "max_tokens", "`max_tokens` may be 512 for this model, got 1000000"),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "max_completion_tokens", "pass one"),
    ({"n": 200}, "n", "less than or equal to 128, got 200"),
    ({"n": 100}, "n", "a request may have 80 answers in all, got 100"),
    ({"top_logprobs": 2}, "top_logprobs", "`top_logprobs` needs `logprobs`"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
    ({"audio": {"voice": "x", "format": "wav"}}, "audio", "The model reads and writes text only"),
    ({"modalities": ["audio"]}, "modalities", "The model writes text only"),
    ({"web_search_options": {}}, "web_search_options", "pass `documents` instead"),
    ({"store": True}, "store", "Answers are not stored"),
    ({"metadata": {"a": "b"}}, "metadata", "nothing can be attached"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "no such setting"),
    ({"functions": [{"name": "f"}]}, "functions", "Replaced by `tools`"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "is for streams"),
    ({"logit_bias": {"99999999": 1}}, "", "token ids below"),
    ({"tools": [WEATHER], "tool_choice": "other"}, "tool_choice", "the tools are \\['get_weather'\\]"),
    ({"response_format": {"type": "xml"}}, "response_format", "`response_format` must be"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "",
        "is an image",
    ),
    (
        {"extra_body": {"memory": {"kind": "gist", "folder": "/etc"}}},
        "memory",
        "or the id of a memory",
    ),
    ({"extra_body": {"memory": {"kind": "fastmem", "steps": 10**6}}}, "memory", "less than or equal to 64"),
    ({"extra_body": {"documents": [{"id": "a"}]}}, "documents", "`documents.0.text` is required"),
    ({"extra_body": {"documents": "a text"}}, "documents", "valid list"),
]


@pytest.mark.parametrize(("options", "param", "message"), REFUSED, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused(client: OpenAI, options: Any, param: str, message: str, stream: bool) -> None:
    if "stream_options" in options and stream:
        pytest.skip("streams have these options")
    with pytest.raises(openai.APIStatusError) as caught:
        chat(client, stream=stream or NOT_GIVEN, **options)
    assert re.search(message, caught.value.body["message"])  # type: ignore[index]
    assert caught.value.status_code == (404 if param == "model" else 400)
    assert (caught.value.type, caught.value.param) == ("invalid_request_error", param or None)


def test_what_completions_and_embeddings_refuse(tiny: Engine, client: OpenAI) -> None:
    for options, message in (
        ({"echo": True}, "`echo`: input should be False"),
        ({"suffix": "x"}, "cannot fill in"),
        ({"best_of": 2}, "`best_of`"),
        ({"prompt": []}, "`prompt` may have 1 to 256 texts, got 0"),
        ({"prompt": [1, 2]}, "valid string"),
        ({"prompt": ["Who?", " "]}, "`prompt` must be text, got ' ' as text 1"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            client.completions.create(**{"model": "tiny", "prompt": "Who?", **options})  # type: ignore[call-overload]
    with pytest.raises(openai.BadRequestError, match="Token ids are not accepted"):
        client.embeddings.create(model="lexical", input=[[1, 2]])
    with pytest.raises(openai.BadRequestError, match="`input` may have 1 to 256 texts, got 257"):
        client.embeddings.create(model="lexical", input=["a"] * 257)
    no_embedder = pytest.raises(openai.NotFoundError, match="this server has no embedder; start it with")
    with served(tiny) as plain, plain.client() as other, no_embedder:
        other.embeddings.create(model="lexical", input="a")


def test_what_asks_for_nothing_is_accepted(client: OpenAI) -> None:
    nothing: Any = {
        "store": False,
        "service_tier": "auto",
        "modalities": ["text"],
        "user": "me",
        "metadata": None,
        "reasoning_effort": "none",
        "prompt_cache_key": "k",
        "logprobs": False,
        "stop": None,
        "temperature": None,
    }
    assert text_of(client, **nothing) == text_of(client)
