"""Answers that are objects of a pydantic class, by constrained decoding: any model gives a valid one.

The model is told the schema, too; constraining alone would have it learn the names of the fields while it writes them.
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
    """What `as_structured_llm` returns: a StructuredLLM whose prompts give their context to the model as documents."""

    def _get_messages(self, prompt: BasePromptTemplate, **prompt_args: Any) -> list[ChatMessage]:
        return self.llm._get_messages(prompt, **prompt_args)


class Partial:
    """An object of a class as it grows: what is there of its JSON -> an object whose fields may all be missing."""

    def __init__(self, output_cls: type[BaseModel]) -> None:
        self._flexible = create_flexible_model(output_cls)
        self._last: Any = None

    def __call__(self, text: str) -> FlexibleModel | None:
        """None if nothing has changed."""
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
        SettingsError: it is none.
    """
    if not (isinstance(output_cls, type) and issubclass(output_cls, BaseModel)):
        raise SettingsError(f"`output_cls` must be a pydantic class, got {output_cls!r}; write class X(BaseModel): ...")
    return output_cls.model_json_schema()


def with_schema(messages: Sequence[ChatMessage], schema: dict[str, Any]) -> list[ChatMessage]:
    """The conversation with the schema in its first, system message."""
    said = f"Answer with JSON of this schema:\n{shown(schema)}"
    return [ChatMessage(role=MessageRole.SYSTEM, content=said), *messages]


def object_of(output_cls: type[BaseModel], response: ChatResponse) -> BaseModel:
    """The object that an answer is.

    Raises:
        StructuredOutputError: the class has rules that no JSON schema can say, and the answer breaks one.
    """
    text = response.message.content or ""
    try:
        return output_cls.model_validate_json(text)
    except ValidationError as e:
        raise StructuredOutputError(
            f"the answer must be a {output_cls.__name__}, got {text!r}: {e}; say the rule in the class's JSON schema "
            "(an enum, a pattern, a bound), or loosen its validators"
        ) from e
