"""`Front`: what an adapter of an integration does, in plain data; `Said`: an answer in plain data."""

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
        text: beside calls of tools, often "".
        calls: (name, arguments) of each.
        invalid: for each call that was begun and cannot be made, what is wrong.
        citations: `start` and `end` in `text`; `source`, an id; `title`; and `text`, the source's.
        report: see `memograft.chat.report_of`.
        usage: `prompt`, `completion`, `total` and `cached`, in tokens.
        finish_reason: "stop", "length" or "tool_calls".
        logprobs: (token, its logarithm of probability) of each token; None where none were asked for.
        message: the framework's own, to go on with in a conversation.
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
        """All that two fronts say alike: not how long it took. Numbers are compared with a tolerance."""
        facts = asdict(self) | {"message": None}
        return _near({**facts, "report": {k: v for k, v in facts["report"].items() if k != "milliseconds"}})


Piece = str | Said


def user(text: str) -> list[Message]:
    """The conversation that a question is."""
    return [{"role": "user", "content": text}]


class Front(ABC):
    """A chat front.

    `settings` and `options` are `memory`, `datastore`, `max_tokens`, `temperature`, `top_p`, `top_k`, `seed`, `stop`,
    `timeout`, `overflow`; `options` also `documents`, `query`, `logprobs` (how many others to report), `tools` (in
    OpenAI's form, or made by `tool`), `tool_choice`, `parallel` (several calls at once) and `response_format`.
    """

    @classmethod
    @abstractmethod
    def over(cls, engine: Engine, **settings: Any) -> Self:
        """One over an engine that is there."""

    @classmethod
    @abstractmethod
    def named(cls, model: str, **settings: Any) -> Self:
        """One that loads its model at its first use; `settings` also `bank` and `model_kwargs`."""

    @property
    @abstractmethod
    def engine(self) -> Engine:
        """The engine, loaded."""

    @property
    @abstractmethod
    def own(self) -> Any:
        """The framework's object: it has `bank`, and can be copied, pickled and changed by `model_copy`."""

    @abstractmethod
    def around(self, own: Any) -> Self:
        """The adapter of another such object."""

    @abstractmethod
    def ask(self, messages: Sequence[Message], **options: Any) -> Said:
        """Answer."""

    @abstractmethod
    async def aask(self, messages: Sequence[Message], **options: Any) -> Said:
        """Answer, without blocking the event loop."""

    @abstractmethod
    def stream(self, messages: Sequence[Message], **options: Any) -> Iterator[Piece]:
        """A generator of the text's pieces, then of the whole answer. Closing it closes the framework's."""

    @abstractmethod
    def astream(self, messages: Sequence[Message], **options: Any) -> AsyncIterator[Piece]:
        """`stream` for `async for`."""

    @abstractmethod
    def tool(self, function: Callable[..., Any]) -> Any:
        """A function as the framework's tool."""

    @abstractmethod
    def document(self, text: str, id: str, metadata: Mapping[str, Any] | None = None) -> Any:
        """The framework's document."""

    @abstractmethod
    def retrieve(self, question: str, pages: Sequence[str]) -> str:
        """Answer by the framework's own chain of a retriever, which finds these pages, and a chat front."""

    @abstractmethod
    def structured(self, schema: type[BaseModel], question: str, **options: Any) -> BaseModel:
        """Answer with an object of a class, in the framework's own way."""

    @abstractmethod
    def structured_raw(self, schema: type[BaseModel], question: str, **options: Any) -> tuple[str, BaseModel]:
        """The same, with the text that the object was made of."""

    @abstractmethod
    def memorize(self, documents: Sequence[Any]) -> MemoryHandle:
        """Memorize for later."""

    @abstractmethod
    def build_datastore(self, examples: Any, **settings: Any) -> Datastore:
        """Learn examples; those of `conversation` among them."""

    @abstractmethod
    def conversation(self, messages: Sequence[Message]) -> list[Any]:
        """A conversation in the framework's messages."""

    def text(self, question: str, **options: Any) -> str:
        """The answer to a question."""
        return self.ask(user(question), **options).text


def _near(value: Any) -> Any:
    """The value, with a tolerance where it has fractions."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-3, abs=1e-6)
    if isinstance(value, dict):
        return {key: _near(inner) for key, inner in value.items()}
    return [_near(inner) for inner in value] if isinstance(value, list | tuple) else value
