"""Errors have the same class and text in every framework."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from conformance.case import Case
from conformance.front import Front, user
from conformance.pages import KNOWN, PAGE, QUESTION
from conformance.sameness import FLAG
from memograft import Engine, FastMem
from memograft.errors import (
    EmptyPromptError,
    EngineClosedError,
    MemograftError,
    RequestTimeoutError,
    SettingsError,
)

__all__ = ["Failures"]


def every_error(chat: Front, **options: Any) -> list[MemograftError]:
    """The errors of the four ways to ask."""

    async def streamed() -> None:
        async for _ in chat.astream(user(QUESTION), **options):
            pass

    ways = (
        lambda: chat.ask(user(QUESTION), **options),
        lambda: list(chat.stream(user(QUESTION), **options)),
        lambda: asyncio.run(chat.aask(user(QUESTION), **options)),
        lambda: asyncio.run(streamed()),
    )
    found = []
    for way in ways:
        with pytest.raises(MemograftError) as caught:
            way()
        found.append(caught.value)
    return found


class Failures(Case):
    """Class and text of errors."""

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            ({"temperature": -1}, "`temperature` must be 0 (greedy) or more, got -1"),
            ({"temperature": "hot"}, "`temperature` must be 0 (greedy) or more, got 'hot'"),
            ({"max_tokens": 0}, "`max_tokens` must be a whole number of at least 1, got 0"),
            ({"top_p": 2.0}, "`top_p` must be above 0"),
            ({"top_k": 0}, "`top_k` must be"),
            ({"seed": 1.5}, "`seed` must be a whole number"),
            ({"stop": [""]}, "`stop` must hold strings that are not empty"),
            ({"overflow": "crop"}, '`overflow` must be "error", "drop" or "truncate", got \'crop\''),
            ({"timeout": -1}, "`timeout` must be a positive number"),
            ({"memory": 3}, "`memory` must be FastMem(...), a handle of "),
            ({"memory": "yes"}, "`memory` must be FastMem(...), a handle of "),
            ({"documents": PAGE}, "`documents` must be a list of documents, got one str; write documents=[...]"),
            ({"query": "Who?"}, "`query` must stand in the last user message"),
            ({"response_format": {"type": "xml"}}, "`response_format` must be"),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"schema": FLAG}}, "max_tokens": 1},
                "; allow more `max_tokens`",
            ),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
    )
    def test_values_that_can_never_work(self, chat: Front, given: dict[str, Any], text: str) -> None:
        errors = every_error(chat, **given)
        assert all(isinstance(error, SettingsError) for error in errors)
        assert len({str(error) for error in errors}) == 1
        assert text in str(errors[0])

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"temperature": -1}, "`temperature` must be 0"),
            ({"top_p": 0}, "`top_p` must be above 0"),
            ({"max_tokens": 0}, "`max_tokens` must be a whole number of at least 1, got 0"),
            ({"overflow": "shrug"}, "Input should be 'error', 'drop' or 'truncate'"),
            ({"memory": "yes"}, r"`memory` must be FastMem\(...\), a handle of .*, got .*'yes'"),
            ({"stop": [""]}, "`stop` must hold strings that are not empty"),
            (
                {"temprature": 1},
                r"Memograft.* has no 'temprature' \(did you mean 'temperature'\?\); there are: .*max_to",
            ),
            (
                {"organization": "x"},
                "Memograft.* has no 'organization'; there are: .*max_tokens, .*model, model_kwargs",
            ),
        ],
    )
    def test_settings_that_can_never_work(self, settings: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            self.front.named("tiny", **settings)

    def test_arguments_that_there_are_not(self, chat: Front) -> None:
        for error in every_error(chat, document=[PAGE]):
            assert isinstance(error, SettingsError)
            assert " has no 'document' (did you mean 'documents'?); there are: " in str(error)

    def test_no_messages(self, chat: Front) -> None:
        with pytest.raises(EmptyPromptError, match="a request needs a `question` or at least one message, got neither"):
            chat.ask([])

    def test_time_that_is_up(self, wild: Front) -> None:
        for error in every_error(wild, timeout=1e-4, max_tokens=200):
            assert isinstance(error, RequestTimeoutError)
            assert isinstance(error, TimeoutError)
            assert str(error) == "the request's `timeout` passed; allow more time or fewer `max_tokens`"

    def test_a_closed_engine(self) -> None:
        engine = Engine.from_pretrained("tiny")
        engine.close()
        for error in every_error(self.front.over(engine)):
            assert isinstance(error, EngineClosedError)
            assert str(error) == "the engine is closed and takes no requests; make a new one"

    def test_a_model_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(
            Exception, match=r"the model '.*nothing' cannot be loaded: .*; pass a folder, a Hugging Face"
        ):
            self.front.named(str(tmp_path / "nothing")).text(QUESTION)
        with pytest.raises(SettingsError, match=r"there is no GGUF file at .*no\.gguf; check the path"):
            self.front.named(str(tmp_path / "no.gguf")).text(QUESTION)

    def test_a_memory_of_another_model(self, chat: Front, random_engine: Engine) -> None:
        other = self.front.over(random_engine, memory=FastMem(relevance=None), max_tokens=3)
        handle = other.memorize([PAGE])
        assert other.ask(user("Who?"), memory=handle).report["memory_id"] == handle.id
        with pytest.raises(SettingsError, match=f"memory {handle.id} was made for another model"):
            chat.ask(user(QUESTION), memory=handle)
        assert chat.text(QUESTION) == KNOWN
