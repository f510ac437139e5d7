"""How tools, `tool_choice` and `response_format` constrain an answer, and how the answer is parsed.

                  the chat template takes tools          it has no place for them
  auto            the template shows them, the           the system message describes them; the answer is text,
                  tokenizer parses calls or text         or JSON of a call that follows the tool's schema
  any, a name     the answer is JSON of a call that follows the schema of one of the tools
  auto, and       the answer is JSON: of a call, or of the response format's schema
  a format
  none            no tools; the answer is text, or JSON of the format's schema

A call is `{"name": ..., "arguments": {...}}`. If several are allowed at once, they may be in a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypedDict

from memograft.chat.calls import FORCE, InvalidCall, Reading, calls_in, parsed
from memograft.chat.choice import checked_tools, choice_of, schema_of_format
from memograft.chat.instruction import EXAMPLES, answers_instruction, calls_instruction
from memograft.chat.schema import closed, hoisted
from memograft.errors import SettingsError
from memograft.request import Answer

__all__ = ["Plan", "TakesTools", "call_schema", "plan"]

_ROOMY = 1024  # window in which the examples are used; they take about 120 tokens
_MORE = "allow more `max_new_tokens`"
_MARKUP = "<[{"  # first characters of calls in all chat templates that take tools

Function = Mapping[str, object]
Reads = Literal["text", "calls", "calls or text", "calls or json", "template"]


class RequestFields(TypedDict):
    """The fields of a `Request` that a `Plan` sets."""

    tools: Sequence[Mapping[str, object]]
    json_schema: Mapping[str, object] | None
    json_optional: bool


class TakesTools(Protocol):
    """The part of an engine that plans need; implemented by `Engine`."""

    @property
    def takes_tools(self) -> bool:
        """Whether the chat template has a place for tools, and the tokenizer can parse calls in a response."""
        ...

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of prompt and answer together."""
        ...

    def parse_response(self, answer: Answer, /) -> Mapping[str, object]:
        """The answer as a message with `content` and `tool_calls`."""
        ...


@dataclass(frozen=True)
class Plan:
    """How an answer is constrained, and how it is parsed.

    Attributes:
        tools: for the request, to be shown by the chat template.
        json_schema: for the request.
        json_optional: for the request.
        instruction: text about the tools for the system message, if the template does not show them; else "".
        examples: messages before the conversation that show small models how to call.
        reads: the form of the answer: "text"; "calls"; "calls or text"; "calls or json" (of the response format); or
            "template", which the tokenizer parses.
        names: of the tools that may be called.
        many: whether several calls are allowed.
    """

    tools: tuple[Mapping[str, object], ...] = ()
    json_schema: Mapping[str, object] | None = None
    json_optional: bool = False
    instruction: str = ""
    examples: tuple[Mapping[str, object], ...] = ()
    reads: Reads = "text"
    names: tuple[str, ...] = ()
    many: bool = False

    def request(self) -> RequestFields:
        """The fields for the `Request`."""
        return {"tools": self.tools, "json_schema": self.json_schema, "json_optional": self.json_optional}

    def shown(self, text: str) -> str:
        """The part of an unfinished answer that can be streamed, as the beginning of the reading's `content`."""
        if self.reads == "text":
            return text
        if self.reads == "template":
            return text[: min((n for n in map(text.find, _MARKUP) if n >= 0), default=len(text))].rstrip()
        if self.reads == "calls or text" and text.strip():
            return "" if self._begins(text) else text
        return ""

    def read(self, engine: TakesTools, answer: Answer) -> Reading:
        """Parse an answer. Incomplete calls are returned as invalid, not raised."""
        text = answer.text
        if self.reads == "text":
            return Reading(text)
        if self.reads == "template":
            try:
                reading = parsed(engine.parse_response(answer), text)
            except Exception as e:  # response templates can raise anything
                remedy = _MORE if answer.finish_reason == "length" else FORCE
                return Reading("", (), (InvalidCall(None, text, f"the answer cannot be parsed: {e}; {remedy}"),))
            return reading if self.many or len(reading.calls) < 2 else _first_alone(reading)
        if calls := calls_in(text, self.names):
            return Reading("", calls)
        if self.reads == "calls or json" or (self.reads == "calls or text" and not self._begins(text)):
            return Reading(text)
        name = self.names[0] if len(self.names) == 1 else None
        remedy = _MORE if answer.finish_reason == "length" else "pass no `stop` string that occurs in a call"
        error = f"the call is not whole (finish_reason={answer.finish_reason!r}); {remedy}"
        return Reading("", (), (InvalidCall(name, text, error),))

    def _begins(self, text: str) -> bool:
        """Whether a non-empty text begins like a call."""
        return text.lstrip()[:1] in ("{[" if self.many else "{")


def plan(
    engine: TakesTools,
    tools: Sequence[Mapping[str, object]] = (),
    tool_choice: object = None,
    response_format: object = None,
    *,
    many: bool | None = None,
    strict: bool = False,
) -> Plan:
    """Plan how this engine answers with tools and formats.

    Args:
        engine: the engine that will answer.
        tools: in OpenAI's form.
        tool_choice: see `choice_of`.
        response_format: in OpenAI's form; ignored if a call is forced, as with OpenAI.
        many: whether several calls are allowed at once (OpenAI's `parallel_tool_calls`). None allows them for models
            with a template for tools, and one call for others.
        strict: whether the arguments must be guaranteed to follow the schema.

    Raises:
        SettingsError: something is malformed or not supported.
    """
    described = checked_tools(tools)
    functions = [_function(tool) for tool in described]
    names = tuple(str(function["name"]) for function in functions)
    answer_schema = schema_of_format(response_format)
    choice = choice_of(tool_choice, names)
    if not described or choice == "none":
        return Plan(json_schema=answer_schema)
    native = engine.takes_tools
    shown = described if native else ()
    if choice == "auto" and answer_schema is None and native:
        if strict:
            raise SettingsError(
                "strict=True promises arguments of the schema, which this model's own way of calling tools does not "
                'guarantee, got tool_choice="auto"; pass tool_choice="any" or a tool\'s name, or leave `strict` out'
            )
        return Plan(shown, None, reads="template", names=names, many=many is not False)
    chosen = [f for f, name in zip(functions, names, strict=True) if choice in ("any", "auto", name)]
    may_call = tuple(str(function["name"]) for function in chosen)
    if choice == "auto" and answer_schema is not None:
        schema = call_schema(chosen, many=False, others=[answer_schema])
        instruction = "" if native else answers_instruction(chosen, answer_schema)
        return Plan(shown, schema, instruction=instruction, reads="calls or json", names=may_call)
    free, many = choice == "auto", bool(many)
    schema = call_schema(chosen, many=many, single=free)
    examples = EXAMPLES if free and engine.max_length >= _ROOMY else ()
    cramped = not free and engine.max_length < _ROOMY  # a forced call follows the schema even without the instruction
    told = "" if native or cramped else calls_instruction(chosen, forced=not free, many=many, examples=bool(examples))
    reads: Reads = "calls or text" if free else "calls"
    return Plan(shown, schema, free, told, examples, reads, may_call, many)


def call_schema(
    functions: Sequence[Function],
    *,
    many: bool = False,
    single: bool = True,
    others: Sequence[Mapping[str, object]] = (),
) -> dict[str, object]:
    """The JSON schema of a call of one of the functions.

    Args:
        functions: each with `name` and `parameters`.
        many: whether a list of calls is allowed.
        single: whether a single call outside of a list is also allowed, if `many`.
        others: schemas that the answer may follow instead.
    """
    definitions: dict[str, object] = {}
    calls: list[dict[str, object]] = []
    for number, function in enumerate(functions):
        parameters = function.get("parameters")
        arguments = closed(parameters) if isinstance(parameters, Mapping) else {}
        if not arguments.keys() & {"$ref", "anyOf", "oneOf", "allOf"}:
            arguments.setdefault("type", "object")
        if arguments.keys() <= {"type", "title", "description"}:  # a function without parameters
            arguments |= {"properties": {}, "additionalProperties": False}
        properties = {
            "name": {"const": function["name"]},
            "arguments": hoisted(arguments, f"tool{number}_", definitions),
        }
        calls.append(
            {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
        )
    one = calls[0] if len(calls) == 1 else {"anyOf": calls}
    options: list[dict[str, object]] = [] if many and not single else calls
    if many:
        options = [*options, {"type": "array", "items": one, "minItems": 1}]
    options = [*options, *(hoisted(other, f"answer{n}_", definitions) for n, other in enumerate(others))]
    schema: dict[str, object] = options[0] if len(options) == 1 else {"anyOf": options}
    return {**schema, "$defs": definitions} if definitions else schema


def _function(tool: Mapping[str, object]) -> Function:
    function = tool["function"]
    assert isinstance(function, Mapping)
    return function


def _first_alone(reading: Reading) -> Reading:
    """Keep only the first of several calls, if one was asked for."""
    return Reading(reading.content, reading.calls[:1], reading.invalid, reading.reasoning)
