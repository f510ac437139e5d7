"""LangChain's standard integration tests of the chat model, with the bundled model and with one that calls tools."""

from __future__ import annotations

from typing import Any

import pytest
from conformance.servers import Servers
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests

from calling_model import calling_engine
from langchain_memograft import ChatMemograft

TOO_SMALL = (
    "the bundled model is too small to choose a tool, to read an argument off a question, or to be told in words what "
    "JSON to write"
)


class _Chat(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatMemograft]:
        return ChatMemograft

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(self) -> dict[Any, Any]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        chat = ChatMemograft(**self.chat_model_params)
        chat = chat.with_memory(chat.memorize_documents(["The river of Paris is the Seine."]))
        if not stream:
            return chat.invoke("Which river?")
        first, *rest = chat.stream("Which river?")
        return sum(rest, first)  # type: ignore[return-value]


class TestBundledModel(_Chat):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "tiny"}

    @property
    def model_override_value(self) -> str:
        return "tiny"

    @pytest.mark.xfail(reason=TOO_SMALL, strict=True)
    def test_tool_calling(self, model: BaseChatModel) -> None:
        super().test_tool_calling(model)

    @pytest.mark.xfail(reason=TOO_SMALL, strict=True)
    async def test_tool_calling_async(self, model: BaseChatModel) -> None:
        await super().test_tool_calling_async(model)

    @pytest.mark.xfail(reason=TOO_SMALL, strict=True)
    def test_unicode_tool_call_integration(self, model: BaseChatModel) -> None:  # type: ignore[override]
        super().test_unicode_tool_call_integration(model)

    @pytest.mark.xfail(reason=TOO_SMALL, strict=True)
    def test_json_mode(self, model: BaseChatModel) -> None:
        super().test_json_mode(model)

    @pytest.mark.xfail(reason=TOO_SMALL, strict=True)
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)


class TestModelThatCallsTools(_Chat):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": calling_engine(), "model": "calling"}

    @property
    def model_override_value(self) -> str:
        return "tiny"


@pytest.mark.enable_socket
class TestModelOfAServer(_Chat):
    """The model that calls tools, behind `memograft serve`."""

    @pytest.fixture(autouse=True)
    def address(self, servers: Servers) -> None:
        type(self).url = servers.url(calling_engine(), "served")

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": self.url, "model": "served"}

    @property
    def model_override_value(self) -> str:
        return "served"
