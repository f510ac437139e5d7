"""Structured output by constrained decoding, with a model that was not trained on JSON."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import pytest
from blockbuster import blockbuster_ctx
from conformance.pages import PAGE, QUESTION
from langchain_core.exceptions import ModelInvalidRequestError, OutputParserException
from langchain_core.outputs import Generation
from pydantic import BaseModel

from langchain_memograft import ChatMemograft
from langchain_memograft._structured import StrictJsonParser


class Capital(BaseModel):
    """A capital."""

    city: Literal["Lisbon", "Canberra", "Oslo"]
    sure: bool


class CapitalDict(TypedDict):
    """A capital."""

    city: Literal["Lisbon", "Canberra", "Oslo"]
    sure: bool


SCHEMA = {**Capital.model_json_schema(), "title": "Capital"}


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("schema", [Capital, CapitalDict, SCHEMA], ids=["pydantic", "typeddict", "schema"])
def test_every_kind_of_schema_by_every_method(chat: ChatMemograft, schema: Any, method: Any) -> None:
    llm = chat.with_structured_output(schema, method=method, max_tokens=80)
    answer = llm.invoke(QUESTION, documents=[PAGE])
    if schema is Capital:
        assert isinstance(answer, Capital)
    else:
        assert Capital.model_validate(answer)
        assert isinstance(answer, dict)
    raw = chat.with_structured_output(schema, method=method, include_raw=True, max_tokens=80).invoke(QUESTION)
    assert raw["parsing_error"] is None
    assert raw["parsed"]
    assert raw["raw"].usage_metadata


async def test_structured_output_of_async_callers_and_streams(chat: ChatMemograft) -> None:
    llm = chat.with_structured_output(Capital, max_tokens=80)
    with blockbuster_ctx():
        assert isinstance(await llm.ainvoke(QUESTION), Capital)
    assert isinstance([part async for part in llm.astream(QUESTION)][-1], Capital)
    parts = list(chat.with_structured_output(SCHEMA, max_tokens=80).stream(QUESTION))
    assert len(parts) > 1
    assert Capital.model_validate(parts[-1])


def test_json_mode_is_any_object_checked_afterwards(chat: ChatMemograft) -> None:
    raw = chat.with_structured_output(Capital, method="json_mode", include_raw=True, max_tokens=40).invoke(QUESTION)
    assert raw["raw"].text.startswith("{")
    assert raw["parsed"] is None
    assert isinstance(raw["parsing_error"], OutputParserException)


def test_an_answer_that_was_cut_off_is_an_error() -> None:
    cut = [Generation(text='{"city": "Lis')]
    assert StrictJsonParser().parse_result(cut, partial=True) == {"city": "Lis"}
    with pytest.raises(OutputParserException, match=r"the answer is not whole JSON .*; allow more `max_tokens`"):
        StrictJsonParser().parse_result(cut)
    with pytest.raises(OutputParserException, match="the answer is not whole JSON"):
        list(StrictJsonParser().transform(iter(['{"city": ', '"Lis'])))
    with pytest.raises(OutputParserException, match="the answer does not match the schema"):
        StrictJsonParser(pydantic_object=Capital).parse_result([Generation(text='{"city": "Rome", "sure": true}')])


def test_a_cut_answer_surfaces_in_each_method(chat: ChatMemograft) -> None:
    stopped = chat.bind(stop=['"'])
    for method in ("json_schema", "function_calling"):
        llm = stopped.with_structured_output(Capital, method=method, max_tokens=80)  # type: ignore[attr-defined]
        with pytest.raises(OutputParserException, match="not whole"):
            llm.invoke(QUESTION, stop=['"'])
        with pytest.raises(OutputParserException, match=r"not whole.*; allow more `max_tokens`"):
            list(llm.stream(QUESTION, stop=['"']))


def test_what_cannot_be_done_is_refused(chat: ChatMemograft) -> None:
    with pytest.raises(ModelInvalidRequestError, match=r"`method` must be one of \('json_schema', .*, got 'magic'"):
        chat.with_structured_output(Capital, method="magic")  # type: ignore[arg-type]
    with pytest.raises(ModelInvalidRequestError, match="`schema` must be a pydantic class, a TypedDict or a JSON"):
        chat.with_structured_output(3)  # type: ignore[arg-type]
