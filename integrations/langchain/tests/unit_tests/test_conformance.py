"""The suite of tests/conformance for `ChatMemograft`, with an adapter to LangChain's types."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any, Self

from conformance.front import Front, Message, Piece, Said
from conformance.suite import Conformance
from langchain_classic.chains import RetrievalQA
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, convert_to_messages
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable
from langchain_core.tools import tool
from memograft import Datastore, Engine, MemoryHandle
from pydantic import BaseModel

from langchain_memograft import ChatMemograft


class Pages(BaseRetriever):
    """Returns the same documents for every query."""

    pages: Sequence[str]

    def _get_relevant_documents(self, query: str, **_: Any) -> list[Document]:
        return [Document(page) for page in self.pages]


class LangChain(Front):
    def __init__(self, own: ChatMemograft) -> None:
        self._own = own

    @classmethod
    def over(cls, engine: Engine, **settings: Any) -> Self:
        return cls(ChatMemograft.from_engine(engine, **settings))

    @classmethod
    def named(cls, model: str, **settings: Any) -> Self:
        return cls(ChatMemograft(model=model, **settings))

    @classmethod
    def at(cls, base_url: str, model: str, **settings: Any) -> Self:
        return cls(ChatMemograft(base_url=base_url, model=model, **settings))

    @property
    def engine(self) -> Engine:
        return self._own._engine_for()

    @property
    def own(self) -> ChatMemograft:
        return self._own

    def around(self, own: ChatMemograft) -> Self:
        return type(self)(own)

    def _bound(self, options: dict[str, Any]) -> Runnable[Any, AIMessage]:
        if options.get("logprobs") is not None:
            options |= {"logprobs": True, "top_logprobs": options["logprobs"]}
        if "parallel" in options:
            options["parallel_tool_calls"] = options.pop("parallel")
        tools = options.pop("tools", None)
        return self._own.bind(**options) if tools is None else self._own.bind_tools(tools, **options)

    def ask(self, messages: Sequence[Message], **options: Any) -> Said:
        return _said(self._bound(options).invoke(list(messages)))

    async def aask(self, messages: Sequence[Message], **options: Any) -> Said:
        return _said(await self._bound(options).ainvoke(list(messages)))

    def stream(self, messages: Sequence[Message], **options: Any) -> Iterator[Piece]:
        whole: Any = None
        with closing(self._bound(options).stream(list(messages))) as chunks:
            for chunk in chunks:
                whole = chunk if whole is None else whole + chunk
                yield chunk.text
        yield _said(whole)

    async def astream(self, messages: Sequence[Message], **options: Any) -> AsyncIterator[Piece]:
        whole: Any = None
        async with aclosing(self._bound(options).astream(list(messages))) as chunks:
            async for chunk in chunks:
                whole = chunk if whole is None else whole + chunk
                yield chunk.text
        yield _said(whole)

    def tool(self, function: Callable[..., Any]) -> Any:
        return tool(function)

    def document(self, text: str, id: str, metadata: Mapping[str, Any] | None = None) -> Document:
        return Document(text, id=id, metadata=dict(metadata or {}))

    def retrieve(self, question: str, pages: Sequence[str]) -> str:
        chain = RetrievalQA.from_chain_type(self._own, retriever=Pages(pages=pages))
        return str(chain.invoke({"query": question})["result"])

    def structured(self, schema: type[BaseModel], question: str, **options: Any) -> Any:
        return self._own.with_structured_output(schema).invoke(question, **options)

    def structured_raw(self, schema: type[BaseModel], question: str, **options: Any) -> tuple[str, Any]:
        found = self._own.with_structured_output(schema, include_raw=True).invoke(question, **options)
        return found["raw"].text, found["parsed"]

    def memorize(self, documents: Sequence[Any], memory: Any = None) -> MemoryHandle:
        return self._own.memorize_documents(documents, memory=memory)

    def build_datastore(self, examples: Any, **settings: Any) -> Datastore:
        return self._own.build_datastore(examples, **settings)

    def conversation(self, messages: Sequence[Message]) -> list[Any]:
        return convert_to_messages(list(messages))


def _said(message: AIMessage) -> Said:
    about, usage = message.response_metadata, message.usage_metadata
    assert usage is not None
    blocks = message.content if isinstance(message.content, list) else []
    cited = [c for block in blocks if isinstance(block, dict) for c in block.get("annotations", ())]
    tokens = about.get("logprobs", {}).get("content")
    return Said(
        text=message.text,
        calls=tuple((call["name"], call["args"]) for call in message.tool_calls),
        invalid=tuple(str(call["error"]) for call in message.invalid_tool_calls),
        citations=tuple(
            {
                "start": c["start_index"],
                "end": c["end_index"],
                "source": c["extras"]["source_id"],
                "title": c["title"],
                "text": c["cited_text"],
            }
            for c in cited
        ),
        report=about["memograft"],
        usage={
            "prompt": usage["input_tokens"],
            "completion": usage["output_tokens"],
            "total": usage["total_tokens"],
            "cached": usage["input_token_details"]["cache_read"],
        },
        finish_reason=about["finish_reason"],
        logprobs=tokens and [(token["token"], token["logprob"]) for token in tokens],
        message=message,
    )


class TestChatMemograft(Conformance):
    front = LangChain
