"""Examples of a datastore and documents that contradict each other: which of them an answer follows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memograft import Answer, Datastore, Document, Engine, FastMem, Memory, Request, Rtd, Source
from memograft.attribution import contains, parting, sentences
from memograft.chat import citations_of, report_of
from memograft.request import Reference, TokenReferences
from test_citations import cited, said
from test_rtd import CAPITALS

TAUGHT = Source("taught", "The capital of Velmora is Torstad.", "What is the capital of Velmora?")
PAGE = Document("The capital of Velmora is Lisbon.", "page", {"title": "Atlas"})


def answered(text: str, moved: str, *documents: Document, source: Source = TAUGHT) -> Answer:
    """An answer whose words `moved`, which occur in it, came from the source."""
    at = text.index(moved)
    token = TokenReferences(1, moved, (Reference(source, 0, 0.8),), at, at + len(moved))
    return replace(said((text, {})), references=(token,), documents=documents)


def found(answer: Answer) -> list[tuple[str, str, str, str]]:
    return [(answer.text[c.start : c.end], c.follows, c.document.id, c.otherwise) for c in answer.conflicts]


def test_the_answer_follows_the_document() -> None:
    for moved in ("The capital of Velmora is", "Velmora is", "The capital of Velmora is Lisbon."):
        answer = answered("The capital of Velmora is Lisbon.", moved, PAGE)
        assert found(answer) == [("Lisbon", "document", "page", "Torstad")]
        assert answer.conflicts[0].source == TAUGHT
        assert not answer.citations
        (about,) = citations_of(answer, answer.text)
        assert (about["start"], about["end"], about["text"]) == (26, 32, "Lisbon")
        assert about["probability"] is None
        source = {"id": "page", "text": PAGE.text, "prompt": "", "metadata": {"title": "Atlas"}}
        assert about["source"] == source


def test_the_document_may_say_it_in_another_order() -> None:
    page = Document("Lisbon is the capital of Velmora.", "page")
    answer = answered("The capital of Velmora is Lisbon.", "Velmora is", page)
    assert found(answer) == [("Lisbon", "document", "page", "Torstad")]


def test_the_answer_follows_the_datastore() -> None:
    answer = answered(TAUGHT.text, "Velmora is Torstad.", Document("Velmora is old.", "other"), PAGE)
    assert found(answer) == [("Torstad", "datastore", "page", "Lisbon")]
    assert cited(answer) == [("Velmora is Torstad.", "taught")]
    assert report_of(answer)["references"]["conflicts"] == [  # type: ignore[index]
        {
            "start": 26,
            "end": 33,
            "text": "Torstad",
            "source": "taught",
            "document": "page",
            "follows": "datastore",
            "otherwise": "Lisbon",
        }
    ]


@pytest.mark.parametrize(
    ("text", "moved", "document"),
    [
        ("The capital of Velmora is Lisbon.", "Velmora is", "The mayor of Velmora is Tor."),  # the model's own word
        (
            "The capital of Velmora is Torstad.",
            "Velmora is Torstad",
            "The capital of Velmora is Torstad.",
        ),  # they agree
        ("The capital of Velmora is Torstad, a port.", "Velmora is Torstad", "It is a port."),  # the example just ends
        ("The capital of Velmora is Torstad.", "Velmora is Torstad", "The capital of France is Paris."),
        ("The capital of Velmora is Torstad.", "Velmora is Torstad", "Velmora is old."),  # another beginning
        ("The capital of France is Paris.", "The capital of", "The capital of France is Paris."),  # another subject
        ("Hm.", "Hm", "Hm! No."),
    ],
)
def test_no_contradiction(text: str, moved: str, document: str) -> None:
    answer = answered(text, moved, Document(document))
    assert not answer.conflicts
    assert cited(answer) == [(moved, "taught")]


def test_other_sentences_of_a_stretch_stay_cited() -> None:
    source = replace(TAUGHT, text="It lies on the Brin. The capital is Torstad. It is old.")
    text = "It lies on the Brin. The capital is Lisbon. It is old."
    answer = answered(text, text, Document("The capital is Lisbon", "page"), source=source)
    assert cited(answer) == [("It lies on the Brin.", "taught"), ("It is old.", "taught")]
    texts = [about["text"] for about in citations_of(answer, answer.text)]
    assert texts == ["It lies on the Brin.", "Lisbon", "It is old."]
    part = "Lisbon. It is old."
    assert [about["text"] for about in citations_of(answer, part)] == ["Lisbon", "It is old."]
    assert all(part[a["start"] : a["end"]] == a["text"] for a in citations_of(answer, part))  # type: ignore[misc]


def test_without_documents_or_datastore_there_is_none() -> None:
    assert not answered(TAUGHT.text, "Velmora").conflicts
    assert not replace(said((PAGE.text, {})), references=(), documents=(PAGE,)).conflicts


@pytest.mark.parametrize("memory", [None, FastMem()])
def test_tiny_cites_the_page_that_it_follows(tiny: Engine, memory: Memory | None) -> None:
    examples = [(TAUGHT.prompt, TAUGHT.text)]
    examples += [
        (f"What is the capital of {land}?", f"The capital of {land} is {city}.") for land, city in CAPITALS.items()
    ]
    with Datastore.build(tiny, examples, progress=False) as store:
        request = Request(TAUGHT.prompt, documents=[PAGE], memory=memory, processors=[Rtd(store)])
        answer = tiny.answer(request)
        assert answer.text == PAGE.text
        assert answer.sources[0].source.text == TAUGHT.text  # it moved the words before
        assert found(answer) == [("Lisbon", "document", "page", "Torstad")]
        assert [about["source"]["id"] for about in citations_of(answer, answer.text)] == ["page"]  # type: ignore[index]


def test_sentences_end_where_readers_see_it() -> None:
    text = 'It costs 3.50 crowns (or 4). "Is it far?" No... 東京は首都。Yes\nWell'
    words = [own.words for own in sentences(text)]
    assert words[:3] == [("it", "costs", "3", "50", "crowns", "or", "4"), ("is", "it", "far"), ("no",)]
    assert words[3:] == [tuple("東京は首都"), ("yes",), ("well",)]
    assert not list(sentences(" ...\n"))


def test_parting_looks_for_the_longest_beginning() -> None:
    (own,) = sentences("The old town is red")
    assert parting(own, 0, "The old wall. The old town was grey. The end.") == (
        found := parting(own, 0, "The old town was grey")
    )
    assert found is not None
    assert (found.at, found.otherwise) == (3, "was grey")
    assert parting(own, 3, "is green") is not None
    assert parting(own, 0, "Nothing of it") is None
    assert parting(own, 0, "The old. It") is None  # it ends there
    assert contains("Is the OLD town red?", ("old", "town"))
    assert not contains("It is old. Town", ("old", "town"))
