"""`MemograftSynthesizer`: one answer from all retrieved nodes, each of which is a document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.indices.prompt_helper import ChatPromptHelper, PromptHelper
from llama_index.core.instrumentation.events.synthesis import GetResponseEndEvent, GetResponseStartEvent
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import NodeWithScore, QueryType
from llama_index.core.settings import Settings
from llama_index.core.types import RESPONSE_TEXT_TYPE
from llama_index.llms.memograft._documents import to_documents
from llama_index.llms.memograft._structured import MemograftStructuredLLM, object_of, schema_of, with_schema
from llama_index.llms.memograft.base import Memograft
from llama_index_instrumentation import get_dispatcher
from memograft.errors import SettingsError

__all__ = ["MemograftSynthesizer"]

dispatcher = get_dispatcher(__name__)


@dataclass
class _Work:
    """The nodes that `synthesize` passes to `get_response`, and the report that it gets back."""

    nodes: Sequence[NodeWithScore]
    report: dict[str, Any] = field(default_factory=dict)


class MemograftSynthesizer(BaseSynthesizer):
    """Answers from all nodes in one request. Unlike LlamaIndex's synthesizers, it does not pack nodes into one text.

    So the relevance of each node is judged separately, and `response.metadata["memograft"]` has the ids of the
    memorized nodes (in a streamed response, after the end of the stream). The LLM's `overflow` applies to nodes that do
    not fit into the context window. If the LLM has a `bank`, nodes that are retrieved again are not memorized again.

    Args:
        llm: a Memograft; by default `Settings.llm`.
        text_qa_template: prompt with the question. None is the question alone; `{context_str}` in it is replaced by a
            reference to the documents.
        streaming: whether responses are streamed.
        output_cls: a pydantic class; answers are objects of it.
        callback_manager: as in other synthesizers.
        empty_response: the response if no node was retrieved.

    Raises:
        SettingsError: the LLM is not a Memograft, or arguments contradict each other.
    """

    def __init__(
        self,
        llm: Any = None,
        *,
        text_qa_template: BasePromptTemplate | None = None,
        streaming: bool = False,
        output_cls: type[BaseModel] | None = None,
        keep: None = None,  # removed
        callback_manager: CallbackManager | None = None,
        empty_response: str | None = None,
    ) -> None:
        llm = llm or Settings.llm
        if isinstance(llm, MemograftStructuredLLM):
            llm, output_cls = llm.llm, output_cls or llm.output_cls
        if not isinstance(llm, Memograft):
            raise SettingsError(
                f"`llm` must be a Memograft, got {type(llm).__name__}; pass llm=Memograft(...), or set Settings.llm"
            )
        if streaming and output_cls is not None:
            raise SettingsError("`streaming` and `output_cls` exclude each other, got both; pass one of them")
        if keep is not None:
            raise SettingsError(
                f"`keep` was removed, got {keep!r}; pass Memograft(bank=...), which keeps memories, instead"
            )
        if output_cls is not None:
            schema_of(output_cls)
        super().__init__(
            llm=llm,
            callback_manager=callback_manager,
            # Not used, because nothing is packed. The defaults would load the model, for the LLM's metadata.
            prompt_helper=PromptHelper(tokenizer=str.split),
            chat_prompt_helper=ChatPromptHelper(tokenizer=str.split),
            streaming=streaming,
            output_cls=output_cls,
            empty_response=empty_response,
        )
        self._model = llm
        self._text_qa_template = text_qa_template

    def _get_prompts(self) -> PromptDictType:
        return {"text_qa_template": self._text_qa_template} if self._text_qa_template is not None else {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        self._text_qa_template = prompts.get("text_qa_template", self._text_qa_template)

    def synthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """Answer a query from nodes."""
        work = _Work(nodes)
        response = super().synthesize(query, nodes, additional_source_nodes, _work=work, **response_kwargs)
        return _reported(response, work)

    async def asynthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """`synthesize` without blocking."""
        work = _Work(nodes)
        response = await super().asynthesize(query, nodes, additional_source_nodes, _work=work, **response_kwargs)
        return _reported(response, work)

    def get_response(
        self, query_str: str, text_chunks: Sequence[str], _work: _Work | None = None, **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """Answer a query from texts or, called by `synthesize`, from nodes."""
        dispatcher.event(GetResponseStartEvent(query_str=query_str, text_chunks=list(text_chunks)))
        work = _work or _Work([])
        messages, options = self._asked(query_str, response_kwargs)
        options |= {"documents": to_documents(work.nodes or text_chunks)}
        answer: RESPONSE_TEXT_TYPE
        if self._streaming:
            answer = _pieces(self._model.stream_chat(messages, **options), work)
        else:
            answer = self._said(self._model.chat(messages, **options), work)
        dispatcher.event(GetResponseEndEvent())
        return answer

    async def aget_response(
        self, query_str: str, text_chunks: Sequence[str], _work: _Work | None = None, **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """`get_response` without blocking."""
        dispatcher.event(GetResponseStartEvent(query_str=query_str, text_chunks=list(text_chunks)))
        work = _work or _Work([])
        messages, options = await asyncio.to_thread(self._asked, query_str, response_kwargs)
        options |= {"documents": to_documents(work.nodes or text_chunks)}
        answer: RESPONSE_TEXT_TYPE
        if self._streaming:
            answer = _apieces(await self._model.astream_chat(messages, **options), work)
        else:
            answer = self._said(await self._model.achat(messages, **options), work)
        dispatcher.event(GetResponseEndEvent())
        return answer

    def _asked(self, query_str: str, response_kwargs: dict[str, Any]) -> tuple[list[ChatMessage], dict[str, Any]]:
        """The messages and arguments for `chat`, without the documents."""
        if self._text_qa_template is None:
            messages = self._model._extend_messages([ChatMessage(role=MessageRole.USER, content=query_str)])
        else:
            args = {**self._text_qa_template.kwargs, **response_kwargs, "query_str": query_str, "context_str": "nodes"}
            messages = self._model._beside((), self._text_qa_template, args)
        if self._output_cls is None:
            return messages, {}
        schema = schema_of(self._output_cls)
        return with_schema(messages, schema), {"json_schema": schema}

    def _said(self, response: ChatResponse, work: _Work) -> Any:
        work.report.update(response.additional_kwargs["memograft"])
        return object_of(self._output_cls, response) if self._output_cls else response.message.content or ""


def _reported(response: RESPONSE_TYPE, work: _Work) -> RESPONSE_TYPE:
    if work.nodes:
        response.metadata = {**(response.metadata or {}), "memograft": work.report}
    return response


def _pieces(responses: Generator[ChatResponse, None, None], work: _Work) -> Generator[str, None, None]:
    for response in responses:
        work.report.update(response.additional_kwargs.get("memograft", {}))
        yield response.delta or ""


async def _apieces(responses: AsyncGenerator[ChatResponse, None], work: _Work) -> AsyncGenerator[str, None]:
    async for response in responses:
        work.report.update(response.additional_kwargs.get("memograft", {}))
        yield response.delta or ""
