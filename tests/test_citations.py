"""Citations: which parts of an answer come from which source, and how a datastore can be given."""

from __future__ import annotations

import gc
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from memograft import Answer, Datastore, Engine, Reference, Rtd, Source, Timings, TokenReferences, Usage
from memograft.errors import SettingsError, StoreError
from memograft.request import Sampling
from memograft.rtd.examples import turns
from memograft.rtd.formula import as_rtd
from memograft.rtd.shared import shared_datastore
from test_rtd import CAPITALS
from tokenizers_ import make

HERE, THERE = Source("here", "one"), Source("there", "two")


def said(*tokens: tuple[str, dict[str, float]], text: str | None = None) -> Answer:
    """An answer of these tokens, each with the probability from each source."""
    sources = {"here": HERE, "there": THERE}
    references, at = [], 0
    for piece, given in tokens:
        entries = tuple(Reference(sources[id], 0, p) for id, p in given.items())
        references.append(TokenReferences(1, piece, entries, at, at + len(piece)))
        at += len(piece)
    whole = "".join(piece for piece, _ in tokens) if text is None else text
    facts: Any = {"usage": Usage(1, 0, 1), "memory": None, "timings": Timings(0, 0, 0)}
    return Answer(whole, (1,) * len(tokens), "stop", references=tuple(references), **facts)


def cited(answer: Answer) -> list[tuple[str, str]]:
    return [(answer.text[c.start : c.end], c.source.id) for c in answer.citations]


def test_neighbours_of_one_source_are_one_citation() -> None:
    answer = said(("It", {}), (" is", {"here": 0.2}), (" Tor", {"here": 0.4}), (" stad", {"there": 0.7}), (".", {}))
    assert cited(answer) == [("is Tor", "here"), ("stad", "there")]
    assert [c.probability for c in answer.citations] == pytest.approx([0.3, 0.7])


def test_a_citation_goes_over_few_tokens_that_are_nobodys() -> None:
    alike = {"here": 0.3, "there": 0.3}
    answer = said(("Nor", {"here": 0.9}), ("wick", alike), (" is", {}), (" old.", {"here": 0.3}))
    assert cited(answer) == [("Norwick is old.", "here")]
    assert answer.citations[0].probability == pytest.approx((0.9 + 0.3 + 0.3) / 4)
    far = said(("A", {"here": 0.9}), (" b", {}), (" c", {}), (" d", {}), (" e", {"here": 0.9}))
    assert cited(far) == [("A", "here"), ("e", "here")]
    other = said(("A", {"here": 0.9}), (" b", {"there": 0.9}), (" c", {"here": 0.9}))
    assert cited(other) == [("A", "here"), ("b", "there"), ("c", "here")]


def test_what_covers_no_word_is_not_cited() -> None:
    assert not cited(said(("Bel", {"here": 0.9}), ("gium", {}), (".", {"there": 0.9})))
    assert cited(said(("東", {"here": 0.9}), ("京", {}), ("。", {"there": 0.9}))) == [("東", "here")]


def test_what_several_sources_say_alike_is_nobodys() -> None:
    answer = said(("The", {"here": 0.3, "there": 0.3}), (" end", {"here": 0.05}), (" is", {"here": 0.4, "there": 0.1}))
    assert [(c.start, c.end, c.source.id) for c in answer.citations] == [(8, 10, "here")]
    assert answer.citations[0].probability == pytest.approx(0.4)


def test_several_entries_of_a_source_count_together() -> None:
    entries = (Reference(HERE, 0, 0.3), Reference(HERE, 5, 0.3), Reference(THERE, 0, 0.4))
    answer = said(("x", {}))
    token = TokenReferences(1, "x", entries, 0, 1)
    answer = Answer(answer.text, (1,), "stop", answer.usage, None, answer.timings, references=(token,))
    assert [(c.source.id, round(c.probability, 6)) for c in answer.citations] == [("here", 0.6)]


def test_nothing_is_cited_for_what_shows_nothing() -> None:
    assert not said((" ", {"here": 0.9})).citations
    assert not said(("", {"here": 0.9})).citations
    assert not said(("Paris", {}), ("!", {})).citations


def test_tiny_cites_where_its_answer_came_from(tiny: Engine) -> None:
    examples = [(f"What is the capital of {land}?", f"{city}, of course!") for land, city in CAPITALS.items()]
    with Datastore.build(tiny, examples, progress=False) as store:
        answer = tiny.answer("What is the capital of Japan?", processors=[Rtd(store, weight=0.9)])
    assert answer.text == "Tokyo, of course!"
    assert "".join(answer.text[t.start : t.end] for t in answer.references) == answer.text
    assert [t.text for t in answer.references if t.start < t.end] == [
        answer.text[t.start : t.end] for t in answer.references if t.start < t.end
    ]
    first = answer.citations[0]
    assert (first.start, first.source.prompt) == (0, "What is the capital of Japan?")
    assert answer.text[: first.end].startswith("Tokyo")


@pytest.mark.parametrize(
    ("kind", "text"), [("bpe", "Où: è, perché 東京 😀 stop it"), ("unigram", "the mat and the dog stop it")]
)
def test_places_in_the_text_whatever_the_tokenizer(models: Any, kind: str, text: str) -> None:
    """Also for characters of several tokens, and if a stop string ends the answer."""
    engine = Engine(models("llama"), make(kind))
    with engine, Datastore.build(engine, [("Where is it?", text)], progress=False) as store:
        rtd = Rtd(store, k=1, weight=1.0, gate=None)
        for stop in ((), ("stop",)):
            answer = engine.answer("Where is it?", processors=[rtd], sampling=Sampling(64, stop=stop))
            places = [(t.start, t.end) for t in answer.references]
            assert answer.text == text.partition("stop")[0] + ("" if stop else "stop it")
            assert places[0][0] == 0
            assert all(a <= b for a, b in places)
            assert all(before[1] == after[0] for before, after in pairwise(places))
            assert places[-1][1] == len(answer.text)


def test_what_stands_for_a_datastore(tiny: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with Datastore.build(tiny, [("a?", "b")], path=folder, progress=False) as store:
        rtd = Rtd(store, weight=0.5)
        assert as_rtd(None) is None
        assert as_rtd(rtd) is rtd
        assert as_rtd(store) == Rtd(store)
    for path in (folder, str(folder)):
        opened = as_rtd(path)
        assert opened is not None
        assert opened.datastore.ids()
        assert opened.datastore is shared_datastore(folder)
    with pytest.raises(SettingsError, match=r"must be a Datastore, .*, the folder of one, or None, got 3"):
        as_rtd(3)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="holds no datastore"):
        as_rtd(tmp_path / "nowhere")


def test_a_shared_datastore_is_opened_anew_once_it_has_changed(tiny: Engine, tmp_path: Path) -> None:
    Datastore.build(tiny, [("a?", "b")], path=tmp_path, progress=False).close()
    first = shared_datastore(tmp_path)
    assert shared_datastore(str(tmp_path)) is first
    with Datastore.open(tmp_path) as writer:
        writer.add(tiny, [("c?", "d")], progress=False)
    second = shared_datastore(tmp_path)
    assert (len(first.ids()), len(second.ids())) == (1, 2)
    del first, second
    gc.collect()
    assert len(shared_datastore(tmp_path).ids()) == 2


def test_every_turn_of_the_assistant_is_an_example() -> None:
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "who"}}]},
        {"role": "assistant", "content": "Me."},
    ]
    assert turns(history) == [(history[:2], "Yes."), (history[:5], "Me.")]
    assert turns([{"role": "assistant", "content": "Good day."}]) == []
