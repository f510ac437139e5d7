"""Tools as plain text for chat templates without a place for them: instructions, calls and results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from memograft.chat.schema import shown

__all__ = ["EXAMPLES", "answers_instruction", "call_text", "calls_instruction", "reminder", "result_text"]

_CALL = '{"name": ..., "arguments": {...}}'


def call_text(calls: Sequence[tuple[str, Mapping[str, object]]]) -> str:
    """Calls, (name, arguments) each, in the form that the instruction asks for."""
    made = [{"name": name, "arguments": dict(arguments)} for name, arguments in calls]
    return json.dumps(made[0] if len(made) == 1 else made, ensure_ascii=False)


def result_text(name: str, result: str) -> str:
    """The result of a call as the text of a user message."""
    return f"Result of {name}: {result}" if name else f"Result: {result}"


def reminder(question: str) -> str:
    """The text after the last results; without it small models do not answer the question."""
    return f"The question was: {question}\nAnswer it in words, or call another function."


_TIME = "What time is it in Lima?"
# Without these, SmolLM2-135M never calls anything: a system message is not enough. Two calls teach it to take arguments
# from the question. One turn without a call, and a call in the last turn, teach it to do both.
_TURNS = (
    ("Hello!", "Hello! What can I do for you?"),
    (_TIME, call_text([("get_time", {"place": "Lima"})])),
    (f"{result_text('get_time', '14:05')}\n\n{reminder(_TIME)}", "It is 14:05 in Lima."),
    ("Who wrote Hamlet?", "William Shakespeare wrote Hamlet."),
    ("And what time is it in Quito?", call_text([("get_time", {"place": "Quito"})])),
)
EXAMPLES: tuple[Mapping[str, object], ...] = tuple(
    {"role": role, "content": content}
    for turn in _TURNS
    for role, content in zip(("user", "assistant"), turn, strict=True)
)


def calls_instruction(
    functions: Sequence[Mapping[str, object]], *, forced: bool, many: bool, examples: bool = False
) -> str:
    """How to call the functions, and their descriptions. `forced`: a call is required; `examples`: examples follow."""
    before = " (The first messages are an example, with another function.)" if examples else ""
    several = f" (or several in a list: [{_CALL}, ...])" if many else ""
    if forced:
        return f"Answer by calling a function, as JSON {_CALL}{several}. The functions:\n{_described(functions)}"
    return (
        f"You can call functions. Where one helps, answer with nothing but JSON {_CALL}{several}; its result comes in "
        f"the next message. Where none helps, or once you have the results, answer in words.{before} The functions:\n"
        f"{_described(functions)}"
    )


def answers_instruction(functions: Sequence[Mapping[str, object]], schema: Mapping[str, object]) -> str:
    """How to call the functions, or else answer with JSON of a schema."""
    return (
        f"You can call functions. Where one helps, answer with JSON {_CALL}; its result comes in the next message. "
        f"Where none helps, or once you have the results, answer in JSON of this schema:\n{shown(schema)}\n"
        f"The functions:\n{_described(functions)}"
    )


def _described(functions: Sequence[Mapping[str, object]]) -> str:
    return "\n".join(shown(function) for function in functions)
