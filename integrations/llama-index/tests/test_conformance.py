"""The suite of tests/conformance for `Memograft`, with an adapter to LlamaIndex's types."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any, Self

from conformance.front import Front, Message, Piece, Said
from conformance.suite import Conformance
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CitableBlock,
    CitationBlock,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import TextNode
from llama_index.core.tools import FunctionTool
from llama_index.llms.memograft import Memograft
from memograft import Datastore, Engine, MemoryHandle
from pydantic import BaseModel

from conftest import Pages


class LlamaIndex(Front):
    def __init__(self, own: Memograft) -> None:
        self._own = own

    @classmethod
    def over(cls, engine: Engine, **settings: Any) -> Self:
        return cls(Memograft.from_engine(engine, **settings))

    @classmethod
    def named(cls, model: str, **settings: Any) -> Self:
        return cls(Memograft(model=model, **settings))

    @classmethod
    def at(cls, base_url: str, model: str, **settings: Any) -> Self:
        return cls(Memograft(base_url=base_url, model=model, **settings))

    @property
    def engine(self) -> Engine:
        return self._own.engine

    @property
    def own(self) -> Memograft:
        return self._own

    def around(self, own: Memograft) -> Self:
        return type(self)(own)

    def ask(self, messages: Sequence[Message], **options: Any) -> Said:
        return _said(self._own.chat(self.conversation(messages), **_named(options)))

    async def aask(self, messages: Sequence[Message], **options: Any) -> Said:
        return _said(await self._own.achat(self.conversation(messages), **_named(options)))

    def stream(self, messages: Sequence[Message], **options: Any) -> Iterator[Piece]:
        with closing(self._own.stream_chat(self.conversation(messages), **_named(options))) as responses:
            for response in responses:
                yield response.delta or ""
        yield _said(response)

    async def astream(self, messages: Sequence[Message], **options: Any) -> AsyncIterator[Piece]:
        async with aclosing(await self._own.astream_chat(self.conversation(messages), **_named(options))) as responses:
            async for response in responses:
                yield response.delta or ""
        yield _said(response)

    def tool(self, function: Callable[..., Any]) -> FunctionTool:
        return FunctionTool.from_defaults(function)

    def document(self, text: str, id: str, metadata: Mapping[str, Any] | None = None) -> TextNode:
        about = dict(metadata or {})
        return TextNode(text=text, id_=id, metadata=about, excluded_llm_metadata_keys=[*about])

    def retrieve(self, question: str, pages: Sequence[str]) -> str:
        return str(RetrieverQueryEngine.from_args(Pages(*pages), llm=self._own).query(question))

    def structured(self, schema: type[BaseModel], question: str, **options: Any) -> BaseModel:
        return self._own.structured_predict(schema, PromptTemplate("{q}"), options, q=question)

    def structured_raw(self, schema: type[BaseModel], question: str, **options: Any) -> tuple[str, Any]:
        llm = self._own.model_copy(update=options).as_structured_llm(schema)
        response = llm.chat([ChatMessage(content=question)])
        return response.message.content or "", response.raw

    def memorize(self, documents: Sequence[Any], memory: Any = None) -> MemoryHandle:
        return self._own.memorize(documents, memory)

    def build_datastore(self, examples: Any, **settings: Any) -> Datastore:
        return self._own.build_datastore(examples, **settings)

    def conversation(self, messages: Sequence[Message]) -> list[Any]:
        return [m if isinstance(m, ChatMessage) else _message(m) for m in messages]


def _named(options: dict[str, Any]) -> dict[str, Any]:
    if "parallel" in options:
        options["allow_parallel_tool_calls"] = options.pop("parallel")
    return options


def _message(message: Message) -> ChatMessage:
    content = message["content"]
    blocks: list[Any] = [_block(part) for part in content] if isinstance(content, list) else [TextBlock(text=content)]
    for call in message.get("tool_calls", ()):
        made = {"tool_name": call["function"]["name"], "tool_kwargs": json.loads(call["function"]["arguments"])}
        blocks.append(ToolCallBlock(tool_call_id=call["id"], **made))
    about = {key: message[key] for key in ("tool_call_id", "name") if key in message}
    return ChatMessage(role=message["role"], blocks=blocks, additional_kwargs=about)


def _block(part: Mapping[str, Any]) -> Any:
    text = TextBlock(text=part["text"])
    return text if part["type"] == "text" else CitableBlock(title="", source=part["id"], content=[text])


def _said(response: ChatResponse) -> Said:
    facts, blocks = response.additional_kwargs, response.message.blocks
    return Said(
        text=response.message.content or "",
        calls=tuple((b.tool_name, b.tool_kwargs) for b in blocks if isinstance(b, ToolCallBlock)),
        invalid=tuple(call["error"] for call in facts.get("invalid_tool_calls", ())),
        citations=tuple(
            {
                "start": block.additional_location_info["answer_start"],
                "end": block.additional_location_info["answer_end"],
                "source": block.source,
                "title": block.title,
                "text": block.cited_content.text,
            }
            for block in blocks
            if isinstance(block, CitationBlock)
        ),
        report=facts["memograft"],
        usage={
            "prompt": facts["prompt_tokens"],
            "completion": facts["completion_tokens"],
            "total": facts["total_tokens"],
            "cached": facts["cached_tokens"],
        },
        finish_reason=facts["finish_reason"],
        logprobs=response.logprobs and [(first.token, first.logprob) for first, *_ in response.logprobs],
        message=response.message,
    )


class TestMemograft(Conformance):
    front = LlamaIndex
