"""Invalid input to the chat model raises errors that are instances of both LangChain's and Memograft's classes."""

from __future__ import annotations

from typing import Any

import pytest
from conformance.pages import KNOWN, PAGE, QUESTION
from langchain_core.exceptions import (
    ContextOverflowError,
    ModelError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelTimeoutError,
)
from langchain_core.messages import HumanMessage
from memograft import FastMem, errors
from pydantic import ValidationError

from langchain_memograft import ChatMemograft
from langchain_memograft._errors import translated, translated_loading


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (errors.PromptTooLongError("long", tokens=9, limit=8), ContextOverflowError),
        (errors.RequestTimeoutError("late"), ModelTimeoutError),
        (errors.EngineClosedError("closed"), ModelError),
        (errors.SettingsError("wrong"), ModelInvalidRequestError),
        (errors.EmptyPromptError("empty"), ModelInvalidRequestError),
        (errors.UnsupportedModelError("odd"), ModelInvalidRequestError),
        (errors.MemoryFormatError("damaged"), ModelInvalidRequestError),
    ],
)
def test_errors_are_of_both_families(raised: Exception, expected: type[ModelError]) -> None:
    with pytest.raises(expected) as caught, translated():
        raise raised
    assert isinstance(caught.value, type(raised))
    assert str(caught.value) == str(raised)
    assert caught.value.__cause__ is raised
    with pytest.raises(type(caught.value)) as again, translated():
        raise caught.value
    assert again.value is caught.value


def test_other_errors_pass_untouched() -> None:
    for error in (errors.MissingExtraError("pip install"), errors.RequestCancelledError("gone"), KeyError("x")):
        with pytest.raises(type(error)) as caught, translated():
            raise error
        assert caught.value is error


def test_what_is_worth_a_retry() -> None:
    for raised, retryable in ((errors.RequestTimeoutError("late"), True), (errors.EngineClosedError("closed"), False)):
        with pytest.raises(ModelError) as caught, translated():
            raise raised
        assert caught.value.is_retryable is retryable


def test_models_that_are_not_there(tmp_path: Any) -> None:
    with pytest.raises(ModelNotFoundError, match=r"the model '.*nothing' cannot be loaded: .*; pass a folder"):
        ChatMemograft(model=str(tmp_path / "nothing")).invoke(QUESTION)
    with pytest.raises(OSError, match="disk"), translated_loading("x"):
        raise OSError("disk")


def test_arguments_nobody_knows_are_refused_by_name(chat: ChatMemograft) -> None:
    for call in (chat.invoke, lambda *a, **k: list(chat.stream(*a, **k))):
        with pytest.raises(ModelInvalidRequestError, match=r"a call of ChatMemograft has no 'docs' .*documents"):
            call(QUESTION, docs=[PAGE])
    assert chat.bind_tools([], parallel_tool_calls=False).invoke(QUESTION).text == KNOWN


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"memory": 3},
            r"`memory` must be FastMem\(...\), a handle of memorize_documents, or None .*, got int 3; pass",
        ),
        ({"memory": "atlas"}, "`memory` must be .*pass the name of a memory as `memory_id`"),
        (
            {"memory_id": "x"},
            r"`memory_id` must be the name of a memory of memorize_documents, got 'x'; the names are \[\]; m",
        ),
        ({"memory_id": "x", "memory": FastMem()}, "`memory` and `memory_id` both select the memory of a call"),
        ({"model": 3}, "`model` must be the name or folder of a model, got 3; pass an engine to from_engine"),
        ({"documents": [3]}, r"documents\[0\] must be a LangChain Document"),
        ({"top_logprobs": 2}, "`top_logprobs` needs `logprobs`, got 2 without it; pass logprobs=True too"),
        ({"logprobs": True, "top_logprobs": 21}, "`logprobs` must be 0 to 20"),
    ],
)
def test_values_that_can_never_work(chat: ChatMemograft, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelInvalidRequestError, match=message):
        chat.invoke(QUESTION, **given)


def test_fields_that_can_never_work() -> None:
    with pytest.raises(ValidationError, match=r"`engine` must be a memograft\.Engine, got str; write Engine"):
        ChatMemograft(engine="tiny")
    with pytest.raises(ValidationError, match="`context_delimiters` must be two strings that are not empty"):
        ChatMemograft(model="tiny", context_delimiters=("<c>", ""))
    with pytest.raises(ValidationError, match="model"):
        ChatMemograft()


def test_requests_that_can_never_work(chat: ChatMemograft) -> None:
    with pytest.raises(ModelInvalidRequestError, match="a request needs a `question` or at least one message"):
        chat.invoke([])
    with pytest.raises(ContextOverflowError, match='overflow="drop" or "truncate"'):
        chat.invoke(QUESTION, documents=[PAGE * 100])
    with pytest.raises(ModelInvalidRequestError, match=r"messages\[0\]\.content\[0\] is an image \('image_url'\)"):
        chat.invoke([HumanMessage([{"type": "image_url", "image_url": {"url": "https://x.y/z.png"}}])])
    asked = HumanMessage(QUESTION, additional_kwargs={"documents": [PAGE]})
    with pytest.raises(ModelInvalidRequestError, match=r'in `additional_kwargs\["documents"\]` of the last hu'):
        chat.invoke([asked], documents=[PAGE])


def test_time_that_is_up(chat: ChatMemograft) -> None:
    with pytest.raises(ModelTimeoutError, match="the request's `timeout` passed; allow more time or fewer `max_tok"):
        chat.invoke(QUESTION, timeout=1e-4, max_retries=2)
    with pytest.raises(TimeoutError):
        list(chat.stream(QUESTION, timeout=1e-4))
