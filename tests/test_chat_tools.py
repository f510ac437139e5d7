"""Constraints by tools and response formats, and parsing of answers, with models that would write something else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from memograft import Engine, Request, Sampling
from memograft.chat import (
    Call,
    Plan,
    Reading,
    call_schema,
    checked_tools,
    choice_of,
    closed,
    hoisted,
    plan,
    read_conversation,
    schema_of_format,
    shown,
)
from memograft.errors import SettingsError

jsonschema = pytest.importorskip("jsonschema")

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The current weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
        },
    },
}
EITHER = {"name": "either", "parameters": {"properties": {"a": {"type": "boolean"}}, "required": ["a"]}}
FORMAT = {"type": "json_schema", "json_schema": {"schema": {"properties": {"x": {"type": "null"}}, "required": ["x"]}}}


class Native:
    """A double of an engine whose template takes tools; `parsed` is the tokenizer's result for an answer."""

    takes_tools, max_length = True, 256

    def __init__(self, parsed: Any = None) -> None:
        self._parsed = parsed

    def parse_response(self, answer: Any) -> Any:
        if self._parsed is None:
            raise KeyError("open")
        return self._parsed


def asked(engine: Engine, how: Plan, text: str = "Who?", tokens: int = 60, **options: Any) -> Request:
    told = read_conversation([{"role": "user", "content": text}], takes_tools=engine.takes_tools, plan=how)
    return Request(messages=told.messages, sampling=Sampling(tokens, **options), **how.request())


@pytest.mark.parametrize("seed", range(4))
def test_a_call_that_has_begun_is_whole_and_of_its_schema(engine: Engine, seed: int) -> None:
    """With random weights; a processor of the request chooses the first character."""
    begin = engine.encode("{")[0]
    schema = call_schema([WEATHER["function"], EITHER])

    def opens(ids: Any, scores: Any) -> Any:
        opens.length = getattr(opens, "length", ids.shape[1])  # type: ignore[attr-defined]
        if ids.shape[1] == opens.length:  # type: ignore[attr-defined]
            scores[:, begin] = 1e4
        return scores

    sampling = Sampling(60, temperature=2.0, seed=seed)
    request = Request("Who?", json_schema=schema, json_optional=True, sampling=sampling, processors=[opens])
    answer = engine.answer(request)
    jsonschema.validate(json.loads(answer.text), schema)
    assert answer.finish_reason == "stop"
    how = Plan(json_schema=schema, json_optional=True, reads="calls or text", names=("get_weather", "either"))
    (call,) = how.read(engine, answer).calls
    assert call.to_openai()["function"] == {
        "name": call.name,
        "arguments": json.dumps(call.arguments, ensure_ascii=False),
    }


@pytest.mark.parametrize("seed", range(4))
def test_text_is_what_it_would_be_anyway(engine: Engine, seed: int) -> None:
    """In free text only the first character is constrained, and the answer does not end earlier."""
    free = Request("Who?", sampling=Sampling(24, temperature=1.0, seed=seed))
    optional = replace(free, json_schema=call_schema([EITHER]), json_optional=True)
    assert not engine.answer(free).text.lstrip().startswith("{")
    assert engine.answer(optional).token_ids == engine.answer(free).token_ids


def test_blanks_decide_nothing(engine: Engine) -> None:
    import torch

    from memograft.decoding.json_or_text import JsonOrText

    tokens = engine._tokens
    processor = tokens.json(call_schema([EITHER]), optional=True)
    assert isinstance(processor, JsonOrText)
    processor.limit(60)
    scores = torch.zeros(1, engine._backbone.vocabulary)
    blank, brace = engine.encode("\n")[0], engine.encode("{")[0]
    ids = torch.tensor([[1, 5]])
    assert processor(ids, scores)[0, brace] == 0
    ids = torch.cat([ids, torch.tensor([[blank]])], dim=1)
    assert processor(ids, scores)[0, brace] == 0
    ids = torch.cat([ids, torch.tensor([[brace]])], dim=1)
    after = processor(ids, scores)[0]
    assert int((after == 0).sum()) < 5  # only tokens that begin with a quote
    assert processor(torch.tensor([[1, 5]]), scores)[0, blank] == 0  # starts over for a repeated batch


def test_where_no_call_fits_there_is_text(engine: Engine) -> None:
    begin = engine.encode("{")[0]

    def wants_to_call(ids: Any, scores: Any) -> Any:
        scores[:, begin] = 1e4
        return scores

    options = {"json_schema": call_schema([WEATHER["function"]]), "json_optional": True}
    request = Request("Who?", sampling=Sampling(6), processors=[wants_to_call], **options)
    assert not engine.answer(request).text.startswith("{")
    with pytest.raises(SettingsError, match="`json_optional` needs a `json_schema`, got none; pass one"):
        Request("Who?", json_optional=True)


def test_tiny_answers_in_text_and_is_forced_to_call(tiny: Engine) -> None:
    """Its template has no place for tools, and it was not trained to call any."""
    how = plan(tiny, [WEATHER, EITHER])
    assert (how.tools, how.json_optional, how.reads, how.names) == (
        (),
        True,
        "calls or text",
        ("get_weather", "either"),
    )
    question = "What is the capital of France?"
    request = asked(tiny, how, question)
    assert request.messages[0]["role"] == "system"
    assert '{"name":"get_weather","description":"The current' in str(request.messages[0]["content"])
    answer = tiny.answer(request)
    assert how.read(tiny, answer) == Reading("The capital of France is Paris.")
    assert how.shown("The capital") == "The capital"
    assert how.shown(' {"name"') == how.shown(" ") == how.shown("") == ""
    forced = plan(tiny, [WEATHER, EITHER], "either")
    answer = tiny.answer(asked(tiny, forced, question))
    (call,) = forced.read(tiny, answer).calls
    assert call.name == "either"
    assert call.arguments in ({"a": True}, {"a": False})
    assert call.id.startswith("call_")
    assert forced.shown(answer.text) == ""


def test_several_calls_at_once(tiny: Engine) -> None:
    how = plan(tiny, [EITHER], "any", many=True)
    reading = how.read(tiny, tiny.answer(asked(tiny, how, tokens=120)))
    assert reading.calls
    assert not reading.invalid
    free = plan(tiny, [EITHER], many=True)
    two = [{"name": "either", "arguments": {"a": a}} for a in (True, False)]
    answer = replace(tiny.answer("Who?", sampling=Sampling(1)), text=json.dumps(two))
    assert [call.arguments for call in free.read(tiny, answer).calls] == [{"a": True}, {"a": False}]
    assert free.shown("[") == ""
    assert plan(tiny, [EITHER]).shown("[1]") == "[1]"
    for instance in (two, two[0]):
        jsonschema.validate(instance, dict(free.json_schema or {}))


def test_a_call_that_was_cut_off_is_invalid(tiny: Engine) -> None:
    how = plan(tiny, [EITHER], "any")
    answer = replace(tiny.answer("Who?", sampling=Sampling(1)), text='{"name": "eith', finish_reason="length")
    (invalid,) = how.read(tiny, answer).invalid
    assert (invalid.name, invalid.text) == ("either", '{"name": "eith')
    assert invalid.error == "the call is not whole (finish_reason='length'); allow more `max_new_tokens`"
    (invalid,) = how.read(tiny, replace(answer, finish_reason="stop")).invalid
    assert invalid.error == "the call is not whole (finish_reason='stop'); pass no `stop` string that occurs in a call"
    assert plan(tiny, [EITHER]).read(tiny, answer).invalid
    assert how.read(tiny, replace(answer, text='{"name": "other", "arguments": {}}')).invalid


def test_a_format_beside_tools(tiny: Engine) -> None:
    how = plan(tiny, [EITHER], "auto", FORMAT)
    assert (how.reads, how.json_optional) == ("calls or json", False)
    assert '{"properties":{"x":{"type":"null"}}' in how.instruction
    answer = tiny.answer(asked(tiny, how, tokens=80))
    jsonschema.validate(json.loads(answer.text), dict(how.json_schema or {}))
    reading = how.read(tiny, answer)
    assert bool(reading.calls) != bool(reading.content)
    assert how.read(tiny, replace(answer, text='{"x": null}')) == Reading('{"x": null}')
    alone = plan(tiny, [EITHER], "none", FORMAT)
    assert alone == Plan(json_schema=closed(FORMAT["json_schema"]["schema"]))  # type: ignore[index]
    assert plan(tiny) == Plan()


def test_a_template_that_takes_tools(tiny: Engine) -> None:
    answer = replace(tiny.answer("Who?", sampling=Sampling(1)), text="Let me see. <tool_call>")
    function = {"name": "either", "arguments": '{"a": true}'}
    message = {"content": "Let me see.", "thinking": "Hm.", "tool_calls": [{"function": function}, function]}
    engine = Native(message)
    how = plan(engine, [EITHER])
    assert (how.reads, how.instruction, how.json_schema) == ("template", "", None)
    assert how.tools == ({"type": "function", "function": EITHER},)
    reading = how.read(engine, answer)
    assert [(call.name, call.arguments) for call in reading.calls] == [("either", {"a": True})] * 2
    assert (reading.content, reading.reasoning) == ("Let me see.", "Hm.")
    assert how.shown(answer.text) == "Let me see."
    assert reading.rest(how.shown("Let")) == " me see."
    assert len(plan(engine, [EITHER], many=False).read(engine, answer).calls) == 1
    (broken,) = how.read(Native({"tool_calls": [{"function": {"arguments": {}}}]}), answer).invalid
    assert broken.error.startswith(
        "the model wrote a call without a name, or with arguments that are not a JSON object"
    )
    for reason, remedy in (("length", "allow more `max_new_tokens`"), ("stop", "force a call with `tool_choice`, .*")):
        (broken,) = how.read(Native(), replace(answer, finish_reason=reason)).invalid
        assert re.fullmatch(f"the answer cannot be parsed: 'open'; {remedy}", broken.error)
    forced = plan(engine, [EITHER], "any")
    assert (forced.reads, forced.instruction, forced.tools) == ("calls", "", how.tools)
    assert plan(engine, [EITHER], "any", strict=True).json_schema
    with pytest.raises(SettingsError, match=r"strict=True promises arguments of the schema, .*; pass tool_choice=\"an"):
        plan(engine, [EITHER], strict=True)
    assert plan(tiny, [EITHER], strict=True).json_schema  # the calls are constrained


def test_choices_in_all_spellings() -> None:
    spelt = [None, "auto", "any", "required", True, "f", {"function": {"name": "f"}}, {"name": "f"}, {"type": "auto"}]
    assert [choice_of(choice, ["f"]) for choice in spelt] == [
        "auto",
        "auto",
        "any",
        "any",
        "any",
        "f",
        "f",
        "f",
        "auto",
    ]
    assert choice_of(False, []) == choice_of("none", ["f"]) == "none"
    for choice in ("g", 3, {"type": "function"}, {"function": {"name": "g"}}):
        with pytest.raises(SettingsError, match=r"`tool_choice` must be .* and the tools are \['f'\]"):
            choice_of(choice, ["f"])
    with pytest.raises(SettingsError, match="tool_choice='any' forces a call, and there are no tools; bind some"):
        choice_of("any", [])


def test_tools_in_their_forms() -> None:
    whole = {"type": "function", "function": EITHER}
    assert (
        checked_tools([whole]) == checked_tools([EITHER]) == checked_tools([{"type": "function", **EITHER}]) == (whole,)
    )
    for tools, message in (
        ([{"function": {}}], r"tools\[0\] must be a description in OpenAI's form, got \{'function': \{\}\}; write"),
        (["f"], r"tools\[0\] must be a description in OpenAI's form, got 'f'; write"),
        (EITHER, r"`tools` must be a list of tools, got one dict; write tools=\[...\]"),
        ([EITHER, EITHER], "tools must have different names, got 'either' twice; rename one"),
    ):
        with pytest.raises(SettingsError, match=message):
            checked_tools(tools)


def test_formats_in_their_forms() -> None:
    assert schema_of_format(None) is schema_of_format({"type": "text"}) is None
    assert schema_of_format({"type": "json_object"}) == {"type": "object"}
    assert schema_of_format(FORMAT) == {**FORMAT["json_schema"]["schema"], "additionalProperties": False}  # type: ignore[index]
    for wrong in ({"type": "json_schema"}, "json", {"type": "xml"}):
        with pytest.raises(SettingsError, match=r"`response_format` must be \{\"type\": \"json_schema\", .*, got"):
            schema_of_format(wrong)


def test_objects_are_closed_unless_they_are_composed() -> None:
    name = {"type": "object", "properties": {"properties": {"type": "null"}, "title": {"type": "string"}}}
    assert closed(name) == {**name, "additionalProperties": False}
    assert closed({"items": name})["items"] == closed(name)
    for left in ({**name, "anyOf": [name]}, {"allOf": [name, name]}, {**name, "additionalProperties": True}):
        assert closed(left) == left
    data = {"const": {"properties": {}}, "enum": [name], "default": name}
    assert closed(data) == data
    parts = {"$defs": {"part": name, "inner": name, "other": name}, "properties": {"x": {"$ref": "#/$defs/other"}}}
    parts["$defs"]["part"] = {**name, "properties": {"y": {"$ref": "#/$defs/inner"}}}
    composed = closed({**parts, "allOf": [{"$ref": "#/$defs/part"}]})
    assert composed["$defs"] == {
        "part": parts["$defs"]["part"],
        "inner": closed(name),
        "other": closed(name),
    }


def test_definitions_of_several_schemas_stay_apart() -> None:
    definitions: dict[str, object] = {}
    for number, kind in enumerate(("string", "integer")):
        schema = {"properties": {"x": {"$ref": "#/$defs/X"}}, "$defs": {"X": {"type": kind}}}
        assert hoisted(schema, f"{number}_", definitions) == {"properties": {"x": {"$ref": f"#/$defs/{number}_X"}}}
    assert definitions == {"0_X": {"type": "string"}, "1_X": {"type": "integer"}}
    tree = {"properties": {"$ref": {"type": "null"}, "next": {"$ref": "#"}}}
    assert hoisted(tree, "t", definitions)["properties"] == {"$ref": {"type": "null"}, "next": {"$ref": "#/$defs/t"}}
    assert "t" in definitions


def test_titles_are_not_shown() -> None:
    schema = {"title": "Person", "properties": {"title": {"title": "Title", "type": "string"}}, "default": {"title": 1}}
    assert shown(schema) == '{"properties":{"title":{"type":"string"}},"default":{"title":1}}'


def test_a_call_has_an_id_of_its_own() -> None:
    assert Call("f").id != Call("f").id


def test_smollm2_calls_and_answers_in_text(smollm2: Engine) -> None:
    """A pretrained model of 135 million parameters, whose template has no place for tools."""
    how = plan(smollm2, [WEATHER])
    question = "What is the weather in Oslo?"
    (call,) = how.read(smollm2, smollm2.answer(asked(smollm2, how, question, 40))).calls
    assert (call.name, call.arguments) == ("get_weather", {"city": "Oslo"})
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": None, "tool_calls": [call.to_openai()]},
        {"role": "tool", "tool_call_id": call.id, "content": "-3 degrees, snow"},
    ]
    told = read_conversation(messages, takes_tools=False, plan=how)
    answer = smollm2.answer(Request(messages=told.messages, query=told.query, sampling=Sampling(40), **how.request()))
    reading = how.read(smollm2, answer)
    assert not reading.calls
    assert "-3 degrees" in reading.content
    answer = smollm2.answer(asked(smollm2, how, "What is the capital of France?", 16))
    assert how.read(smollm2, answer) == Reading("The capital of France is Paris.")


def test_importing_it_loads_no_torch() -> None:
    heavy = ["torch", "transformers", "numpy", "peft"]
    code = f"import sys, memograft.chat; print([m for m in {heavy} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
