"""`Front`: the adapter that each integration implements; `Said`: an answer as plain data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import pytest
from pydantic import BaseModel

from memograft import Datastore, Engine, MemoryHandle

__all__ = ["Front", "Message", "Piece", "Said", "user"]

Message = Mapping[str, Any]  # in OpenAI's form, or a `Said.message`, which is the framework's own


@dataclass(frozen=True)
class Said:
    """An answer.

    Attributes:
        text: the answer's text; with tool calls it is often "".
        calls: (name, arguments) of each tool call.
        invalid: an error text for each tool call that cannot be parsed.
        citations: `start` and `end` in `text`; `source`, an id; `title`; and `text`, the source's.
        report: see `memograft.chat.report_of`.
        usage: `prompt`, `completion`, `total` and `cached`, in tokens.
        finish_reason: "stop", "length" or "tool_calls".
        logprobs: (token, log-probability) of each token; None if the request did not ask for them.
        message: the framework's message, which continues a conversation.
    """

    text: str
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    invalid: tuple[str, ...] = ()
    citations: tuple[dict[str, Any], ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)
    usage: Mapping[str, int] = field(default_factory=dict)
    finish_reason: str = "stop"
    logprobs: list[tuple[str, float]] | None = None
    message: Any = None

    def facts(self) -> dict[str, Any]:
        """The values that must be equal in all fronts, without times. Floats are compared with a tolerance."""
        facts = asdict(self) | {"message": None}
        return _near({**facts, "report": {k: v for k, v in facts["report"].items() if k != "milliseconds"}})


Piece = str | Said


def user(text: str) -> list[Message]:
    """A conversation with one user message."""
    return [{"role": "user", "content": text}]


class Front(ABC):
    """A chat front.

    `settings` and `options` are `memory`, `datastore`, `max_tokens`, `temperature`, `top_p`, `top_k`, `min_p`,
    `repetition_penalty`, `logit_bias`, `seed`, `stop`, `timeout`, `overflow`; `options` also `documents`, `query`,
    `logprobs` (number of other tokens to report), `tools` (in OpenAI's form, or made by `tool`), `tool_choice`,
    `parallel` (several calls at once) and `response_format`.
    """

    @classmethod
    @abstractmethod
    def over(cls, engine: Engine, **settings: Any) -> Self:
        """A front over an existing engine."""

    @classmethod
    @abstractmethod
    def named(cls, model: str, **settings: Any) -> Self:
        """A front that loads its model at its first use; `settings` also `bank` and `model_kwargs`."""

    @classmethod
    @abstractmethod
    def at(cls, base_url: str, model: str, **settings: Any) -> Self:
        """A front that asks a server; `settings` also `api_key`."""

    @property
    @abstractmethod
    def engine(self) -> Engine:
        """The engine; the first use loads the model."""

    @property
    @abstractmethod
    def own(self) -> Any:
        """The framework's object: it has `bank`, and can be copied, pickled and changed by `model_copy`."""

    @abstractmethod
    def around(self, own: Any) -> Self:
        """The adapter of another object of the framework."""

    @abstractmethod
    def ask(self, messages: Sequence[Message], **options: Any) -> Said:
        """Answer a conversation."""

    @abstractmethod
    async def aask(self, messages: Sequence[Message], **options: Any) -> Said:
        """`ask` without blocking the event loop."""

    @abstractmethod
    def stream(self, messages: Sequence[Message], **options: Any) -> Iterator[Piece]:
        """A generator that yields the pieces of the text, then the whole answer. Closing it closes the framework's."""

    @abstractmethod
    def astream(self, messages: Sequence[Message], **options: Any) -> AsyncIterator[Piece]:
        """`stream` for `async for`."""

    @abstractmethod
    def tool(self, function: Callable[..., Any]) -> Any:
        """Convert a function to the framework's tool."""

    @abstractmethod
    def document(self, text: str, id: str, metadata: Mapping[str, Any] | None = None) -> Any:
        """Make a document of the framework."""

    @abstractmethod
    def retrieve(self, question: str, pages: Sequence[str]) -> str:
        """Answer with the framework's own retrieval chain; its retriever returns these pages."""

    @abstractmethod
    def structured(self, schema: type[BaseModel], question: str, **options: Any) -> BaseModel:
        """Answer with an object of this class, by the framework's structured output."""

    @abstractmethod
    def structured_raw(self, schema: type[BaseModel], question: str, **options: Any) -> tuple[str, BaseModel]:
        """`structured`, and the text from which the object was parsed."""

    @abstractmethod
    def memorize(self, documents: Sequence[Any], memory: Any = None) -> MemoryHandle:
        """Memorize documents, and return the handle."""

    @abstractmethod
    def build_datastore(self, examples: Any, **settings: Any) -> Datastore:
        """Build a datastore; the result of `conversation` can be one of the examples."""

    @abstractmethod
    def conversation(self, messages: Sequence[Message]) -> list[Any]:
        """Convert a conversation to the framework's messages."""

    def text(self, question: str, **options: Any) -> str:
        """The text of the answer to a question."""
        return self.ask(user(question), **options).text


def _near(value: Any) -> Any:
    """The value with `pytest.approx` around each float."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-3, abs=1e-6)
    if isinstance(value, dict):
        return {key: _near(inner) for key, inner in value.items()}
    return [_near(inner) for inner in value] if isinstance(value, list | tuple) else value
