"""Callbacks, instrumentation events and token counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.callbacks.token_counting import TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.llms.memograft import Memograft, MemograftSynthesizer
from pydantic import PrivateAttr

from conftest import MEMORIZED, PAGE, QUESTION, Pages

ASKED = [ChatMessage(role="user", content=QUESTION)]


class Watch(BaseEventHandler):
    """An event handler that records all events."""

    _seen: list[Any] = PrivateAttr(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Watch"

    def handle(self, event: Any, **kwargs: Any) -> None:
        self._seen.append(event)

    def names(self) -> list[str]:
        """Names of the events, without repetitions."""
        return list(dict.fromkeys(type(event).__name__ for event in self._seen))


@pytest.fixture
def watch() -> Iterator[Watch]:
    root, handler = get_dispatcher(), Watch()
    root.add_event_handler(handler)
    yield handler
    root.event_handlers.remove(handler)


def count(*_: Any) -> list[Any]:
    raise AssertionError("tokens are counted by the engine; nobody needs another tokenizer")


@pytest.fixture
def counter() -> TokenCountingHandler:
    return TokenCountingHandler(tokenizer=count)


async def test_tokens_are_counted(llm: Memograft, counter: TokenCountingHandler) -> None:
    llm = llm.model_copy(update={"callback_manager": CallbackManager([counter])})
    responses: list[Any] = [llm.chat(ASKED), llm.complete(QUESTION), await llm.achat(ASKED)]
    responses.append(list(llm.stream_chat(ASKED))[-1])
    responses.append(list(llm.stream_complete(QUESTION))[-1])
    responses.append([r async for r in await llm.astream_chat(ASKED)][-1])
    assert [e.prompt_token_count for e in counter.llm_token_counts] == [
        r.additional_kwargs["prompt_tokens"] for r in responses
    ]
    assert [e.completion_token_count for e in counter.llm_token_counts] == [
        r.additional_kwargs["completion_tokens"] for r in responses
    ]


def test_events_of_chat(llm: Memograft, watch: Watch) -> None:
    llm.chat(ASKED, documents=[PAGE])
    assert watch.names() == ["LLMChatStartEvent", "LLMChatEndEvent"]
    start, end = watch._seen
    assert start.model_dict["model_name"] == "tiny"
    assert start.additional_kwargs == {"documents": [PAGE]}
    assert end.response.message.content == MEMORIZED


async def test_events_of_streams(llm: Memograft, watch: Watch) -> None:
    stream = await llm.astream_complete(QUESTION)
    assert [r async for r in stream]
    assert watch.names() == ["LLMCompletionStartEvent", "LLMCompletionInProgressEvent", "LLMCompletionEndEvent"]


def test_events_of_a_query(llm: Memograft, watch: Watch) -> None:
    RetrieverQueryEngine(Pages(PAGE), MemograftSynthesizer(llm)).query(QUESTION)
    names = watch.names()
    for name in (
        "QueryStartEvent",
        "SynthesizeStartEvent",
        "GetResponseStartEvent",
        "LLMChatEndEvent",
        "QueryEndEvent",
    ):
        assert name in names


def test_an_error_ends_its_event(llm: Memograft) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    llm = llm.model_copy(update={"callback_manager": CallbackManager([debug])})
    with pytest.raises(ValueError, match="must be a node"):
        llm.chat(ASKED, documents=[1])
    ((_, end),) = debug.get_event_pairs(CBEventType.LLM)
    assert "must be a node" in str(end.payload[EventPayload.EXCEPTION])


def test_what_traces_say_loads_nothing_and_is_plain() -> None:
    import json

    llm = Memograft(model="no such model")
    assert json.loads(json.dumps(llm.to_payload()))["model_name"] == "no such model"
    assert llm._engine is None


def test_a_rate_limiter_is_asked(llm: Memograft) -> None:
    class Limiter:
        asked = 0

        def acquire(self) -> None:
            self.asked += 1

    limiter = Limiter()
    llm.model_copy(update={"rate_limiter": limiter}).complete(QUESTION)
    assert limiter.asked == 1
