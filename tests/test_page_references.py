"""The HTML page of a datastore's references: correct, escaped, and self-contained."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from memograft import Answer, Datastore, Engine, Reference, Rtd, Source, Timings, TokenReferences, Usage, page
from tokenizers_ import make

HOSTILE = '</span></style><script>alert("x")</script> & <img src=x onerror=y> {{ 7 * 7 }} ${x}'
HERE, THERE = Source("here", "Torstad is one.", "Where?"), Source("there", "two")


def answer_of(*tokens: tuple[str, list[tuple[Source, float]]]) -> Answer:
    """An answer of these tokens, each with the probability from each source."""
    references, at = [], 0
    for n, (piece, given) in enumerate(tokens):
        entries = tuple(Reference(source, n, p) for source, p in given)
        references.append(TokenReferences(7, piece, entries, at, at + len(piece)))
        at += len(piece)
    whole = "".join(piece for piece, _ in tokens)
    return Answer(
        whole, (7,) * len(tokens), "stop", Usage(1, 0, 1), None, Timings(0, 0, 0), references=tuple(references)
    )


class Balance(HTMLParser):
    """Fails if a tag is closed that is not open; stores the attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def balanced(html: str) -> Balance:
    parser = Balance()
    parser.feed(html)
    assert parser.open == []
    return parser


def test_hostile_texts_are_texts() -> None:
    source = Source(HOSTILE, HOSTILE, HOSTILE, {"title": HOSTILE})
    answer = answer_of((HOSTILE, [(source, 0.9)]))
    for html in (
        page.references_html(answer),
        page.question_page(
            HOSTILE,
            [page.Way(HOSTILE, page.references_of(answer), 0.5)],
            page.Memorized(
                (page.Retrieved(HOSTILE, HOSTILE, False, HOSTILE),), (page.Token(HOSTILE, 1, 2),), 1, 2, HOSTILE
            ),
            model=HOSTILE,
        ),
    ):
        assert "<script" not in html
        assert "<img" not in html
        assert "{{ 7 * 7 }}" in html, "texts are not templates"
        parser = balanced(html)
        loads = {"src", "href", "onerror", "onload", "action", "srcset"}
        assert not parser.attributes & loads
        styles = " ".join(re.findall(r"<style>(.*?)</style>", html, re.S))
        assert styles
        assert not re.search(r"url\(|@import|https?:|expression", styles)


def test_shades_shares_and_numbers() -> None:
    answer = answer_of(
        ("It", []),
        (" is", [(HERE, 0.25)]),
        (" Tor", [(HERE, 0.45), (THERE, 0.05)]),
        (" stad", [(THERE, 0.7)]),
        (".", []),
    )
    shown = page.references_of(answer)
    assert "".join(piece.text for piece in shown.pieces) == answer.text
    assert [piece.probability for piece in shown.pieces] == pytest.approx([0, 0.25, 0.5, 0.7, 0])
    assert [(item.number, item.source.id, item.share) for item in shown.sources] == [
        (1, "there", pytest.approx(0.15)),
        (2, "here", pytest.approx(0.14)),
    ]
    assert shown.share == pytest.approx(0.29)
    assert [(piece.cited, piece.last) for piece in shown.pieces] == [
        (0, False), (2, False), (2, True), (1, True), (0, False)
    ]  # fmt: skip
    html = page.references_html(answer)
    assert re.findall(r'<span class="m (m\d)', html) == ["m0", "m4", "m7", "m8", "m0"]
    assert re.findall(r"<sup>\[(\d)\]</sup>", html) == ["2", "1"]
    assert "<b>29%</b> of this answer's probability came from the datastore" in html
    assert '<span class="bar">15%<i style="width: 15.0%"></i></span><span>two<small><span class="id">there' in html
    assert "<small>Where? · <span" in html


def test_each_entry_has_its_source_and_its_place() -> None:
    answer = answer_of(("Tor", [(HERE, 0.3), (THERE, 0.004)]))
    (piece,) = page.references_of(answer).pieces
    assert [(e.source.id, e.number, e.position, e.probability) for e in piece.entries] == [
        ("here", 1, 0, 0.3),
        ("there", 2, 0, 0.004),
    ]
    tip = re.search(r'<span class="tip" hidden>(.*?)</span></span></span>', page.references_html(answer))
    assert tip is not None
    assert tip[1].startswith('<span><b>30%</b> [1] <i class="id">here</i>, token 1: Torstad is one.</span>')
    assert '<b>&lt;1%</b> [2] <i class="id">there</i>, token 1: two' in tip[1]


def test_many_entries_and_sources_are_counted_not_shown() -> None:
    sources = [Source(f"s{n}", f"text {n}") for n in range(12)]
    last = Source("cited", "text")
    first = [(source, 0.09 - n * 0.005) for n, source in enumerate(sources)]
    answer = answer_of(("all", first), (" one", [(last, 0.11)]), ("", []))
    shown = page.references_of(answer)
    assert (len(shown.pieces[0].entries), shown.pieces[0].more) == (4, 8)
    assert (len(shown.sources), shown.more) == (8, 5)
    weak = answer_of(("all", [(source, 0.5) for source in sources]), (" one", [(last, 0.11)]))
    shown = page.references_of(weak)
    assert shown.sources[-1].source.id == "cited", "what is cited is listed, however little it moved"
    assert shown.pieces[-1].cited == shown.sources[-1].number == 9
    html = page.references_html(weak)
    assert "<span>and 8 more</span>" in html
    assert "and 4 more sources" in html


def test_nothing_moved_and_nothing_asked() -> None:
    moved_nothing = page.references_html(answer_of(("Paris", []), ("!", [])))
    assert "Nothing of this answer came from the datastore" in moved_nothing
    assert "<ol>" not in moved_nothing
    plain = Answer("Paris & Rome", (1,), "stop", Usage(1, 0, 1), None, Timings(0, 0, 0))
    html = page.references_html(plain)
    assert "Paris &amp; Rome" in html
    assert "datastore:" not in html
    assert '<p class="said"></p>' not in page.references_html(Answer("", (), "stop", plain.usage, None, plain.timings))


def test_what_shows_nothing_and_what_a_stop_string_cut() -> None:
    """Parts of a character are shown as one; text after the last token is kept."""
    entries = (Reference(HERE, 0, 0.8),)
    tokens = (TokenReferences(1, "\ufffd", entries, 0, 0), TokenReferences(2, "\ufffd", (), 0, 1))
    answer = Answer("漢字", (1, 2), "stop", Usage(1, 0, 2), None, Timings(0, 0, 0), references=tokens)
    first, rest = page.references_of(answer).pieces
    assert (first.text, first.probability, first.entries[0].probability) == ("漢", 0.4, 0.8)
    assert (rest.text, rest.entries) == ("字", ())


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_the_token_of_an_entry_is_marked_in_its_text(kind: str) -> None:
    tokenizer = make(kind)
    text = "The capital of France is Paris, and the river of Paris is the Seine. " * 4
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    source = Source("page", text)
    for position in (0, 5, len(ids) // 2, len(ids) - 1):
        token = TokenReferences(ids[position], "x", (Reference(source, position, 0.5),), 0, 1)
        answer = Answer("x", (1,), "stop", Usage(1, 0, 1), None, Timings(0, 0, 0), references=(token,))
        shown = page.references_of(answer, tokenizer)
        (entry,) = shown.pieces[0].entries
        ours = tokenizer.decode(ids[position], clean_up_tokenization_spaces=False).strip().removeprefix("##")
        assert entry.token.strip() == ours
        around = (entry.before + entry.token + entry.after).strip("…").strip()
        assert around in tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert entry.before.startswith("…") == (position > 24)
        assert entry.after.endswith("…") == (position + 13 < len(ids))
        assert around in shown.sources[0].text, "of a long source what is around the entry is shown"


def test_a_long_source_is_listed_with_what_moved_most() -> None:
    tokenizer = make("bpe")
    text = "The capital of France is Paris. " + "Who wrote the book? " * 30 + "The river of Paris is the Seine."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    source, last = Source("page", text), len(ids) - 1
    tokens = tuple(
        TokenReferences(ids[at], "x", (Reference(source, at, p),), n, n + 1)
        for n, (at, p) in enumerate([(2, 0.1), (last, 0.6), (3, 0.2)])
    )
    answer = Answer("xxx", (1,) * 3, "stop", Usage(1, 0, 3), None, Timings(0, 0, 0), references=tokens)
    listed = page.references_of(answer, tokenizer).sources[0].text
    assert listed.startswith("…")
    assert listed.endswith("The river of Paris is the Seine.")
    without = page.references_of(answer).sources[0].text
    assert without.startswith("The capital of France is Paris.")
    assert (len(without), without[-1]) == (241, "…")


def test_a_place_that_cannot_be_found_is_not_invented() -> None:
    tokenizer = make("bpe")
    for id, position in ((3, 0), (tokenizer("two", add_special_tokens=False)["input_ids"][0], 99)):
        token = TokenReferences(id, "x", (Reference(THERE, position, 0.5),), 0, 1)
        answer = Answer("x", (1,), "stop", Usage(1, 0, 1), None, Timings(0, 0, 0), references=(token,))
        (entry,) = page.references_of(answer, tokenizer).pieces[0].entries
        assert (entry.before, entry.token, entry.after) == ("two", "", "")


def test_every_entry_of_a_real_answer_is_marked_where_it_says(tiny: Engine) -> None:
    examples: list[Any] = [
        ("What is the capital of Velmora?", "The capital of Velmora is Torstad."),
        {
            "text": "Long ago. " * 40 + "The capital of Velmora is Torstad, it is said. " + "It rains. " * 40,
            "id": "raw",
        },
    ]
    with Datastore.build(tiny, examples, progress=False) as store:
        rtd = Rtd(store, weight=0.9, gate=None)
        answer = tiny.answer("What is the capital of Velmora?", processors=[rtd])
    shown = page.references_of(answer, tiny.tokenizer)
    assert "".join(piece.text for piece in shown.pieces) == answer.text == "The capital of Velmora is Torstad."
    marked = [(piece.text, entry.token) for piece in shown.pieces for entry in piece.entries]
    assert {source.source.id for source in shown.sources} > {"raw"}
    assert len(marked) > 10
    assert all(text.strip() == token.strip() for text, token in marked)
    balanced(page.references_html(answer, tiny.tokenizer))


def test_the_page_of_a_question() -> None:
    steered = page.Way("plain", page.references_of(answer_of(("Torstad", [(HERE, 0.3)]))), 0.25)
    other = page.Way("memorized", page.references_of(answer_of(("Marn", []))), 0.5)
    tokens = (page.Token("Marseille", 9.0, 0.01),)
    kept = page.Memorized((page.Retrieved("France", "Marseille.", True, "memorized"),), tokens, 9.0, 0.01)
    html = page.question_page("Where?", [steered, other], kept, model="/some/folder/mine")
    balanced(html)
    assert html.startswith("<!DOCTYPE html>")
    assert "<title>Where?</title>" in html
    assert (
        "What mine said, how much of each piece came from the datastore's examples, and what it had memorized" in html
    )
    assert [*re.findall(r"<h2>(\w+)</h2><span class=\"tag\">(\S+) s", html)] == [
        ("plain", "0.25"),
        ("memorized", "0.50"),
    ]
    assert re.findall(r'<span class="t (s\d)"[^>]*>Marseille</span>', html) == ["s9", "s0"]
    assert html.count('<div class="legend') == 2
    unsteered = page.Way("plain", page.References(page.references_of(answer_of(("Torstad", []))).pieces), 0.25)
    bare = page.question_page("Where?", [unsteered], page.Memorized(), model="tiny")
    assert "What tiny said." in bare
    assert "Nothing was retrieved." in bare
    assert '<div class="legend' not in bare
