"""LangChain's standard unit tests of the chat model."""

from __future__ import annotations

from typing import Any

from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_memograft import ChatMemograft


class TestChatMemograft(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[ChatMemograft]:
        return ChatMemograft

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "tiny"}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        params = super().standard_chat_model_params
        del params["api_key"]  # a local model has none, and what it does not have it refuses
        return params

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return False
