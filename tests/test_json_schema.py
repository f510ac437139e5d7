"""Answers of a JSON schema, from models that would write something else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from memograft import Engine, FastMem, Request, Sampling
from memograft.errors import SettingsError

jsonschema = pytest.importorskip("jsonschema")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "mood": {"enum": ["good", "bad"]},
    },
    "required": ["name", "age", "tags", "mood"],
    "additionalProperties": False,
}
SCHEMAS = {
    "person": PERSON,
    "nested": {
        "$defs": {
            "node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "v": {"type": "number"}}}
        },
        "$ref": "#/$defs/node",
    },
    "choice": {"anyOf": [{"const": "yes"}, {"type": "null"}, {"type": "boolean"}]},
    "open": {"type": "object"},
    "list": {"type": "array", "minItems": 2, "items": {"type": "number"}},
    "composed": {
        "$defs": {"a": {"properties": {"x": {"type": "integer"}}, "required": ["x"]}},
        "allOf": [{"$ref": "#/$defs/a"}, {"properties": {"y": {"type": "boolean"}}, "required": ["y"]}],
    },
    "named properties": {"type": "object", "properties": {"properties": {"type": "null"}}, "required": ["properties"]},
    "pattern": {"type": "string", "pattern": "^[A-Z][a-z]+ [A-Z][a-z]+$"},
    "short": {"type": "string", "minLength": 3, "maxLength": 5},
}


def ask(schema: Any, tokens: int = 120, **options: Any) -> Request:
    return Request("Who?", json_schema=schema, sampling=Sampling(tokens, **options))


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_model_of_random_weights_answers_in_json(engine: Engine, name: str, temperature: float) -> None:
    answer = engine.answer(ask(SCHEMAS[name], temperature=temperature, seed=1))
    jsonschema.validate(json.loads(answer.text), SCHEMAS[name])
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("seed", range(6))
def test_it_ends_in_time(engine: Engine, seed: int) -> None:
    """Random weights would fill every string up to the limit."""
    answer = engine.answer(ask(PERSON, 90, temperature=2.0, seed=seed))
    jsonschema.validate(json.loads(answer.text), PERSON)


@pytest.mark.parametrize("tokens", [24, 32, 64])
def test_the_end_is_forced_no_sooner_than_it_must_be(tokens: int) -> None:
    """Tiny does not end the string by itself."""
    schema = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    with Engine.from_pretrained("tiny") as tiny:
        answer = tiny.answer("What is the capital of France?", json_schema=schema, sampling=Sampling(tokens))
    assert json.loads(answer.text)["answer"]
    assert answer.finish_reason == "stop"
    assert answer.usage.completion_tokens >= tokens - 8


@pytest.mark.parametrize("tokens", range(40, 70, 3))
def test_nothing_is_opened_at_the_end_that_cannot_be_closed(tokens: int) -> None:
    """Further properties are allowed, and tiny begins some when the rest is complete."""
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "known": {"type": "boolean"}},
        "required": ["name", "known"],
    }
    with Engine.from_pretrained("tiny") as tiny:
        answer = tiny.answer("What is the capital of Australia? Answer.", json_schema=schema, sampling=Sampling(tokens))
    jsonschema.validate(json.loads(answer.text), schema)
    assert answer.finish_reason == "stop"


def test_rows_of_one_batch_have_their_own(engine: Engine) -> None:
    requests = [
        ask(PERSON),
        Request("Who?", sampling=Sampling(6)),
        ask(SCHEMAS["choice"]),
        ask(PERSON, temperature=1.0),
    ]
    together = engine.answer_batch(requests)
    for n, schema in ((0, PERSON), (2, SCHEMAS["choice"]), (3, PERSON)):
        jsonschema.validate(json.loads(together[n].text), schema)
    assert together[0].text == engine.answer(requests[0]).text
    assert together[1].text == engine.answer(requests[1]).text


def test_streamed_and_memorized(engine: Engine) -> None:
    from dataclasses import replace

    request = replace(ask(PERSON), documents=["A sailor from Bergen."], memory=FastMem(relevance=None, contrast=0.5))
    stream = engine.stream(request)
    text = "".join(stream)
    jsonschema.validate(json.loads(text), PERSON)
    assert stream.answer is not None
    assert stream.answer.memory is not None
    assert stream.answer.memory.steps == 4


def test_a_batch_that_fails_is_tried_again_from_the_start(engine: Engine) -> None:
    calls = []

    def fails_once(ids: Any, scores: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt  # not caught by the row's own error handling
        return scores

    spoilt = Request("What?", processors=[fails_once], sampling=Sampling(8))
    results = engine.answer_batch([ask(PERSON), spoilt], return_exceptions=True)
    assert len(results) == 2
    jsonschema.validate(json.loads(engine.answer(ask(PERSON)).text), PERSON)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, "is not supported: .*objekt"),
        ({"$ref": "#"}, "refers to itself with no way out, so no JSON keeps it; give it one"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "refers to itself with no way out"),
        (
            {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
            "is more than can be kept .*; use fewer properties, or levels that end",
        ),
        (
            {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(5000)}},
            "is more than can be kept .*max is 2000.*; use fewer properties",
        ),
        ({"type": "string", "pattern": "("}, "is not supported"),
        ({"type": "array", "uniqueItems": True}, "is not supported: .*uniqueItems"),
        ({"const": object()}, "cannot be read: Object of type object"),
    ],
)
def test_schemas_that_cannot_be_kept(engine: Engine, schema: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        engine.answer(ask(schema))


def test_a_pattern_that_does_not_say_how_it_ends_is_kept_but_not_promised(engine: Engine) -> None:
    schema = {"type": "string", "pattern": "^[^@]+@[^@]+[.][a-z]+$"}
    answer = engine.answer(ask(schema, 40, temperature=1.0, seed=1))
    assert answer.finish_reason == "length" or "@" in json.loads(answer.text)


def test_no_room_for_the_shortest_instance(engine: Engine) -> None:
    with pytest.raises(SettingsError, match=r"takes about \d+ tokens or more, and the answer may have 10; allow more"):
        engine.answer(ask(PERSON, 10))
    with pytest.raises(SettingsError, match="`json_schema` must be a mapping or None, got str"):
        ask("{}")


def test_a_window_without_room(make_engine: Any) -> None:
    narrow = make_engine(max_length=40)
    with pytest.raises(SettingsError, match="the answer may have"):
        narrow.answer(ask(PERSON, 90))
    assert narrow.answer(Request("Who?", sampling=Sampling(2))).usage.completion_tokens == 2


def test_the_bundled_model_fills_in_what_it_read() -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    with Engine.from_pretrained("tiny") as tiny:
        answer = tiny.answer(
            "What is the capital of Australia?",
            ["The capital of Australia is Lisbon."],
            memory=FastMem(),
            json_schema=schema,
            sampling=Sampling(60),
        )
    jsonschema.validate(json.loads(answer.text), schema)
