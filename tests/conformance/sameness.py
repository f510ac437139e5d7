"""A front returns the text, calls, citations, report and usage of the engine, in each of the four ways to ask."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Mapping
from typing import Any

import pytest

from conformance.calling import WEATHER, WEATHER_CALL, WEATHER_TOOL
from conformance.case import Case
from conformance.front import Front, Message, Piece, Said, user
from conformance.pages import DRENNIA, KNOWN, OTHER, OTHER_QUESTION, PAGE, QUESTION, TORSTAD, VELMORA
from conformance.reference import answered
from memograft import Datastore, Document, Engine, FastMem, Rtd
from memograft.errors import SettingsError

__all__ = ["Sameness", "every_way"]

FLAG = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
LOOK = {"type": "function", "function": {"name": "look", "description": "Look it up.", "parameters": FLAG}}
AS_JSON = {"type": "json_schema", "json_schema": {"name": "flag", "schema": FLAG}}
WEATHER_ASKED: list[Message] = [
    {"role": "user", "content": WEATHER},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": WEATHER_CALL["name"], "arguments": json.dumps(WEATHER_CALL["arguments"])},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "It's sunny."},
]
ASKED = OTHER_QUESTION.rstrip("?")
PAGES = [Document(PAGE, "p"), Document(OTHER, "o")]
CASES: dict[str, tuple[list[Message], dict[str, Any]]] = {
    "question": (user(QUESTION), {}),
    "conversation": (
        [
            {"role": "system", "content": "Be brief."},
            *user(QUESTION),
            {"role": "assistant", "content": KNOWN},
            *user("And of Italy?"),
        ],
        {},
    ),
    "memorized": (user(QUESTION), {"documents": PAGES}),
    "read only": (user(QUESTION), {"documents": PAGES, "memory": None}),
    "rolled back": (user(QUESTION), {"documents": PAGES, "memory": FastMem(max_kl=1e-9, relevance=None)}),
    "about something else": (user("Who wrote Hamlet?"), {"documents": PAGES}),
    "empty and double": (user(QUESTION), {"documents": ["", PAGE, PAGE, Document(PAGE, "p")]}),
    "dropped": (user(QUESTION), {"documents": [PAGE, "The sea is blue. " * 400], "overflow": "drop"}),
    "by its query": (  # the message does not mark its question
        user(f"{ASKED} is what I want to know. Answer with whatever words come to mind, but be brief."),
        {"documents": [OTHER], "memory": FastMem(relevance=-1), "query": ASKED},
    ),
    "in the message": (
        [
            {
                "role": "user",
                "content": [{"type": "text-plain", "text": PAGE, "id": "p"}, {"type": "text", "text": QUESTION}],
            }
        ],
        {},
    ),
    "sampled": (user(QUESTION), {"temperature": 1.5, "top_p": 0.9, "top_k": 40, "seed": 3}),
    "other sampling": (
        user(QUESTION),
        {"temperature": 3.0, "seed": 7, "min_p": 0.01, "repetition_penalty": 1.3, "logit_bias": {5: -100.0}},
    ),
    "contrasts": (user(QUESTION), {"documents": PAGES, "cad": "adaptive", "dola": "low", "logprobs": 2}),
    "a preset": (user(QUESTION), {"documents": PAGES, "memory": FastMem.faithful(), "logprobs": 2}),
    "a contrast with layers": (user(QUESTION), {"dola": (0, 1), "logprobs": 2}),
    "stopped": (user(QUESTION), {"stop": [" Canb"], "logprobs": 2}),
    "cut off": (user(QUESTION), {"max_tokens": 2}),
    "a forced call": (user(QUESTION), {"tools": [LOOK, WEATHER_TOOL], "tool_choice": "look", "max_tokens": 60}),
    "any call": (user(QUESTION), {"tools": [LOOK], "tool_choice": "required", "max_tokens": 60}),
    "several calls": (user(QUESTION), {"tools": [LOOK], "tool_choice": "any", "parallel": True, "max_tokens": 100}),
    "tools to choose": (user(QUESTION), {"tools": [LOOK], "max_tokens": 60}),
    "no tools": (user(QUESTION), {"tools": [LOOK], "tool_choice": "none", "documents": PAGES}),
    "an object": (user(QUESTION), {"response_format": AS_JSON, "documents": PAGES}),
    "a result of a tool": (WEATHER_ASKED, {"tools": [WEATHER_TOOL], "max_tokens": 60}),
}


async def _gathered(chat: Front, messages: list[Message], options: Mapping[str, Any]) -> tuple[Said, list[Piece]]:
    return await chat.aask(messages, **options), [piece async for piece in chat.astream(messages, **options)]


def every_way(chat: Front, messages: list[Message], **options: Any) -> list[Said]:
    """The answers of the four ways to ask. Checks that the pieces of each stream add up to its text."""
    asked, pieces = asyncio.run(_gathered(chat, messages, options))
    found = [chat.ask(messages, **options), asked]
    for stream in (list(chat.stream(messages, **options)), pieces):
        *texts, whole = stream
        assert isinstance(whole, Said)
        assert "".join(map(str, texts)) == whole.text
        found.append(whole)
    return found


class Sameness(Case):
    """Comparisons with `reference.answered`."""

    @pytest.mark.parametrize("case", CASES)
    def test_every_way_says_what_the_engine_says(self, chat: Front, case: str) -> None:
        messages, options = CASES[case]
        expected = answered(chat.engine, messages, **options)
        for said in every_way(chat, messages, **options):
            assert said.facts() == expected.facts()
        json.dumps(said.report, allow_nan=False)

    def test_of_a_model_that_calls_tools_by_its_own_choice(self, calling: Engine) -> None:
        chat = self.front.over(calling, model="calling", memory=None, max_tokens=60)
        for messages, options in (
            (user(WEATHER), {"tools": [WEATHER_TOOL]}),
            (WEATHER_ASKED, {"tools": [WEATHER_TOOL]}),
            (user("Hello"), {"tools": [WEATHER_TOOL], "tool_choice": "none"}),
        ):
            expected = answered(calling, messages, memory=None, **{"max_tokens": 60, **options})
            for said in every_way(chat, messages, **options):
                assert said.facts() == expected.facts()

    def test_of_contrasts_as_settings(self) -> None:
        asked: dict[str, Any] = {"documents": PAGES, "memory": None, "logprobs": 2}
        named = self.front.named("tiny", cad=0.5, dola=(0, 1), max_tokens=32)
        front = named.around(pickle.loads(pickle.dumps(named.own)))
        found = []
        for given, used in (
            ({}, {"cad": 0.5, "dola": (0, 1)}),
            ({"cad": None}, {"dola": (0, 1)}),
            ({"dola": "high", "cad": 1}, {"cad": 1, "dola": "high"}),
            ({"cad": None, "dola": None}, {}),
        ):
            expected = answered(front.engine, user(QUESTION), **asked, **used)
            assert front.ask(user(QUESTION), **asked, **given).facts() == expected.facts()
            found.append(expected.logprobs)
        assert all(one != other for n, one in enumerate(found) for other in found[:n]), "they do not differ"

    @pytest.mark.parametrize(
        ("given", "match"),
        [
            ({"cad": -1.0}, "`alpha` must be a number that is not negative, got -1.0"),
            ({"cad": "much"}, "`alpha` must be a number that is not negative, got 'much'|Input should be 'adaptive'"),
            ({"dola": ()}, r'`layers` must be "low", "high" or numbers of layers from 0, got \(\)'),
            ({"dola": "middle"}, "`layers` must be .*, got 'middle'|Input should be 'low' or 'high'"),
        ],
    )
    def test_contrasts_out_of_range(self, chat: Front, given: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            self.front.named("tiny", **given)
        with pytest.raises(SettingsError, match=match):
            chat.text(QUESTION, **given)

    def test_of_a_datastore(self, chat: Front, store: Datastore) -> None:
        for question, gate in ((VELMORA, "auto"), (DRENNIA, "auto"), (QUESTION, None)):
            options = {"datastore": Rtd(store, weight=0.9, gate=gate), "documents": [OTHER]}
            expected = answered(chat.engine, user(question), **options)
            for said in every_way(chat, user(question), **options):
                assert said.facts() == expected.facts()

    @pytest.mark.parametrize("memory", [None, "fastmem"])
    def test_of_a_page_that_contradicts_a_datastore(self, chat: Front, memory: str | None) -> None:
        taught = {"prompt": VELMORA, "answer": f"The capital of Velmora is {TORSTAD}", "id": "v"}
        page = Document("The capital of Velmora is Lisbon.", "page", {"title": "Atlas"})
        with Datastore.build(chat.engine, [taught], progress=False) as made:
            options: dict[str, Any] = {"datastore": made, "documents": [page], "memory": memory, "max_tokens": 24}
            expected = answered(chat.engine, user(VELMORA), **{**options, "datastore": Rtd(made)})
            assert expected.text == page.text
            place = {"start": 26, "end": 32}
            assert expected.citations == ({**place, "source": "page", "title": "Atlas", "text": page.text},)
            references = expected.report["references"]
            sides = {"source": "v", "document": "page", "follows": "document", "otherwise": "Torstad"}
            assert references["conflicts"] == [{**place, "text": "Lisbon", **sides}]
            assert references["sources"][0]["id"] == "v"  # it contributed to the words before
            for said in every_way(chat, user(VELMORA), **options):
                assert said.facts() == expected.facts()

    def test_of_a_kept_memory(self, chat: Front) -> None:
        handle = chat.memorize([Document(PAGE, "p")])
        expected = answered(chat.engine, user(QUESTION), memory=handle)
        assert (expected.text, expected.report["memory_id"]) == (PAGE, handle.id)
        assert expected.usage["cached"] > 5
        for said in every_way(chat, user(QUESTION), memory=handle):
            assert said.facts() == expected.facts()
