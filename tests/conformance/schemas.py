"""Structured output by constrained decoding, on models that were not trained on JSON."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from conformance.case import Case
from conformance.fixtures import Seen
from conformance.front import Front, user
from conformance.pages import PAGE, QUESTION
from conformance.sameness import every_way
from memograft import Engine
from memograft.errors import MemograftError, SettingsError

__all__ = ["Schemas"]


class Street(BaseModel):
    name: str = Field(max_length=12)
    number: int = Field(ge=1, le=999)


class City(BaseModel):
    """A city, and what is known of it."""

    capital: Literal["Canberra", "Lisbon"] = Field(description="Its name.")
    sure: bool
    streets: list[Street] = Field(max_length=2)


class Small(BaseModel):
    """A small thing."""

    a: bool
    b: Literal["x", "y"]


def wire(schema: type[BaseModel]) -> dict[str, Any]:
    """The `response_format` of a class."""
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema.model_json_schema()}}


class Schemas(Case):
    """`response_format` and pydantic classes."""

    @pytest.fixture(params=["tiny", "random"])
    def any_chat(self, request: pytest.FixtureRequest, tiny: Engine, random_engine: Engine) -> Front:
        if request.param == "tiny":
            return self.front.over(tiny, max_tokens=120)
        return self.front.over(random_engine, memory=None, max_tokens=100, temperature=1.0, seed=1)

    def test_every_way_gives_a_valid_object(self, any_chat: Front) -> None:
        texts = [said.text for said in every_way(any_chat, user("Who?"), response_format=wire(Small))]
        assert len(set(texts)) == 1
        assert Small.model_validate_json(texts[0])

    def test_objects_of_classes(self, any_chat: Front) -> None:
        assert isinstance(any_chat.structured(Small, "Who?"), Small)
        text, found = any_chat.structured_raw(Small, "Who?")
        assert isinstance(found, Small)
        assert Small.model_validate_json(text) == found

    def test_nested_classes_and_bounds(self, chat: Front) -> None:
        city = chat.structured(City, QUESTION, documents=[PAGE], max_tokens=120)
        assert isinstance(city, City)
        assert len(city.streets) <= 2

    def test_documents_are_memorized_beside_a_schema(self, chat: Front, seen: Seen) -> None:
        assert isinstance(chat.structured(Small, QUESTION, documents=[PAGE], max_tokens=60), Small)
        assert (seen.documents, seen.messages[-1]) == ([PAGE], ("user", QUESTION))
        wanted = Small.model_json_schema() | {"additionalProperties": False}  # else endless properties
        assert {k: v for k, v in seen.last.json_schema.items() if k != "title"} == {
            k: v for k, v in wanted.items() if k != "title"
        }
        said = chat.ask(user(QUESTION), documents=[PAGE], response_format=wire(Small))
        assert len(said.report["memorized"]) == 1

    def test_what_cannot_be_kept_is_refused(self, chat: Front) -> None:
        for given, match in (
            ({"type": "xml"}, "`response_format` must be"),
            (
                {
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": "object", "properties": {"a": {"not": {}}}}},
                },
                "`json_schema` is not supported",
            ),
        ):
            with pytest.raises(SettingsError, match=match):
                chat.ask(user(QUESTION), response_format=given)

    def test_too_few_tokens_for_any_object(self, chat: Front) -> None:
        said = r"JSON of this schema takes about .* tokens or more, .*; allow more `max_tokens`"
        with pytest.raises(SettingsError, match=said):
            chat.ask(user("Who?"), response_format=wire(City), max_tokens=3)
        with pytest.raises(MemograftError, match=said):
            chat.structured(City, "Who?", max_tokens=3)

    def test_no_class(self, chat: Front) -> None:
        with pytest.raises(MemograftError, match=r"must be a pydantic class.*, got"):
            chat.structured(3, "Who?")
