"""Citations: spans of the answer, their sources, and how later turns of a conversation treat them."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.calling import WEATHER_TOOL
from conformance.case import Case
from conformance.fixtures import Seen
from conformance.front import Front, Message, Said, user
from conformance.pages import DRENNIA, EXAMPLE, GORVALD, OTHER_KNOWN, OTHER_QUESTION, PAGE, TORSTAD, VELMORA
from conformance.sameness import WEATHER_ASKED, every_way
from memograft import Bank, Datastore, Engine, FastMem, Rtd

__all__ = ["Citations"]

CITED = {"start": 0, "end": len(TORSTAD), "source": "velmora", "title": "Atlas", "text": TORSTAD}


def checked(said: Said) -> None:
    """The answer cites the source, and the report has the source and the span."""
    assert (said.text, said.citations) == (TORSTAD, (CITED,))
    (source,), (citation,) = said.report["references"]["sources"], said.report["references"]["citations"]
    about = {"id": "velmora", "prompt": VELMORA, "text": TORSTAD, "metadata": EXAMPLE["metadata"]}
    assert 0.5 < citation["probability"] <= 0.9 < source["probability"]
    assert {k: v for k, v in source.items() if k != "probability"} == citation["source"] == about
    assert (citation["start"], citation["end"], citation["text"]) == (0, len(TORSTAD), TORSTAD)


class Citations(Case):
    """Citations of a datastore's sources."""

    @pytest.fixture
    def steered(self, tiny: Engine, store: Datastore) -> Front:
        return self.front.over(tiny, memory=None, max_tokens=32, datastore=Rtd(store, weight=0.9))

    def test_every_way_cites(self, steered: Front) -> None:
        for said in every_way(steered, user(VELMORA)):
            checked(said)

    def test_without_a_datastore_there_are_no_references(self, plain: Front) -> None:
        for said in every_way(plain, user(VELMORA)):
            assert (said.citations, said.report["references"]) == ((), None)

    def test_an_answer_that_nothing_moved_cites_nothing(self, plain: Front, store: Datastore) -> None:
        said = plain.ask(user(VELMORA), datastore=Rtd(store, weight=0.0))
        assert (said.citations, said.report["references"]) == ((), {"sources": [], "citations": [], "conflicts": []})

    def test_an_example_without_a_title_is_cited_by_its_prompt(self, steered: Front) -> None:
        said = steered.ask(user(DRENNIA))
        assert said.text == GORVALD
        assert [(c["source"], c["title"]) for c in said.citations] == [("drennia", DRENNIA)]

    @pytest.mark.parametrize(("title", "shown"), [("France", "France"), (None, "page"), (7, "page")])
    def test_a_text_is_cited_by_its_title_or_its_id(self, plain: Front, title: Any, shown: str) -> None:
        page = plain.document(OTHER_KNOWN, "page", {} if title is None else {"title": title})
        with plain.build_datastore([page], progress=False) as store:
            said = plain.ask(user(OTHER_QUESTION), datastore=Rtd(store, weight=0.9, gate=None))
        assert {(c["source"], c["title"], c["text"]) for c in said.citations} == {("page", shown, OTHER_KNOWN)}

    def test_of_a_long_source_300_characters_are_cited(self, plain: Front) -> None:
        long = TORSTAD + " It is a port." * 40
        with plain.build_datastore([(VELMORA, long)], progress=False) as store:
            said = plain.ask(user(VELMORA), datastore=Rtd(store, weight=0.9), max_tokens=12)
        (citation,) = said.citations
        assert citation["text"] == long[:300]
        assert said.report["references"]["citations"][0]["source"]["text"] == long

    def test_a_message_that_cites_goes_back_into_a_conversation(self, steered: Front, seen: Seen) -> None:
        said = steered.ask(user(VELMORA))
        checked(said)
        asked: list[Message] = [*user(VELMORA), said.message, *user(VELMORA)]
        assert steered.ask(asked).text == TORSTAD
        assert seen.messages == [("user", VELMORA), ("assistant", TORSTAD), ("user", VELMORA)]
        assert seen.documents == []  # a cited source is not passed as a document

    def test_beside_tools_that_may_be_called(self, calling: Engine) -> None:
        chat = self.front.over(calling, memory=None, max_tokens=40)
        told = chat.ask(WEATHER_ASKED, tools=[WEATHER_TOOL])
        history = [*chat.conversation(WEATHER_ASKED), told.message]
        with chat.build_datastore([history], progress=False) as store:
            rtd = Rtd(store, weight=0.5, gate=None)
            for said in every_way(chat, WEATHER_ASKED, tools=[WEATHER_TOOL], datastore=rtd):
                assert said.text == told.text
                assert {cited["source"] for cited in said.citations} == set(store.ids())

    def test_beside_documents_and_a_bank(self, store: Datastore) -> None:
        rtd, memory = Rtd(store, weight=0.9, gate=None), FastMem(relevance=None)  # the page changes the prompt
        chat = self.front.named("tiny", bank=Bank(), datastore=rtd, memory=memory, max_tokens=32)
        first, again = (chat.ask(user(VELMORA), documents=[PAGE]) for _ in range(2))
        checked(first)
        checked(again)
        assert (first.report["reused"], again.report["reused"]) == (False, True)
        chat.engine.close()
