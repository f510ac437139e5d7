"""LangChain's standard unit tests of the chat model, all of them, from a class that names the model and no more."""

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
    """The same on the name of a pretrained model. Its integration suite takes minutes, and is not run here."""

    @property
    def chat_model_class(self) -> type[ChatMemograft]:
        return ChatMemograft

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "smollm2"}
