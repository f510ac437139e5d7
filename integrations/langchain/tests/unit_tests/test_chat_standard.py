"""All of LangChain's standard unit tests of the chat model."""

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


class TestSmolLM2(ChatModelUnitTests):
    """With the name of a pretrained model. Its integration tests take 7 minutes, and are not run here."""

    @property
    def chat_model_class(self) -> type[ChatMemograft]:
        return ChatMemograft

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "smollm2"}
