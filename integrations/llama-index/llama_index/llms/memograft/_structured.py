"""Answers that are objects of a pydantic class, by constrained decoding, with any model.

The prompt has the schema too, so that the model has read the names of all fields before it writes the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pydantic_core
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.bridge.pydantic import BaseModel, ValidationError
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.program.utils import FlexibleModel, create_flexible_model
from llama_index.core.prompts import BasePromptTemplate
from llama_index.llms.memograft._errors import StructuredOutputError
from memograft.chat import shown
from memograft.errors import SettingsError

__all__ = ["MemograftStructuredLLM", "Partial", "object_of", "schema_of", "with_schema"]


class MemograftStructuredLLM(StructuredLLM):
    """The result of `as_structured_llm`: a StructuredLLM that passes the context of a prompt as documents."""

    def _get_messages(self, prompt: BasePromptTemplate, **prompt_args: Any) -> list[ChatMessage]:
        return self.llm._get_messages(prompt, **prompt_args)


class Partial:
    """Parses unfinished JSON to objects of a class, whose fields are all optional."""

    def __init__(self, output_cls: type[BaseModel]) -> None:
        self._flexible = create_flexible_model(output_cls)
        self._last: Any = None

    def __call__(self, text: str) -> FlexibleModel | None:
        """The object for an unfinished text; None if it has not changed."""
        try:
            value = pydantic_core.from_json(text, allow_partial="trailing-strings")
        except ValueError:
            return None
        if not isinstance(value, dict) or value == self._last:
            return None
        self._last = value
        return self._flexible(**value)


def schema_of(output_cls: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a pydantic class.

    Raises:
        SettingsError: `output_cls` is not a pydantic class.
    """
    if not (isinstance(output_cls, type) and issubclass(output_cls, BaseModel)):
        raise SettingsError(f"`output_cls` must be a pydantic class, got {output_cls!r}; write class X(BaseModel): ...")
    return output_cls.model_json_schema()


def with_schema(messages: Sequence[ChatMessage], schema: dict[str, Any]) -> list[ChatMessage]:
    """The conversation after a system message with the schema."""
    said = f"Answer with JSON of this schema:\n{shown(schema)}"
    return [ChatMessage(role=MessageRole.SYSTEM, content=said), *messages]


def object_of(output_cls: type[BaseModel], response: ChatResponse) -> BaseModel:
    """The answer as an object of the class.

    Raises:
        StructuredOutputError: a validator of the class, which is not in its JSON schema, refuses the answer.
    """
    text = response.message.content or ""
    try:
        return output_cls.model_validate_json(text)
    except ValidationError as e:
        raise StructuredOutputError(
            f"the answer must be a {output_cls.__name__}, got {text!r}: {e}; put the rule into the class's JSON schema "
            "(an enum, a pattern, a bound), or loosen its validators"
        ) from e
