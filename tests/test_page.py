"""The demo's HTML page: escaped, self-contained, written atomically, with the right text for every token."""

from __future__ import annotations

import re

import pytest

from memograft import page
from memograft.errors import SettingsError
from memograft.memory.report import MemoryReport
from tokenizers_ import make

HOSTILE = '<script>alert("x")</script> & <img src=x onerror=y>'
COUNTS = {
    "questions": 1,
    "right": {"closed_book": 0, "plain": 1, "memorized": 0},
    "changed_to_document": 0,
    "changed_only_by_memorizing": 0,
    "spoiled": [HOSTILE],
}


def card(tokens: tuple[page.Token, ...], **changes) -> page.Card:
    replies = tuple(page.Reply(way, HOSTILE, way == "plain") for way in ("closed", "plain", "memorized"))
    fields = {
        "question": HOSTILE, "kind": "extends", "expected": HOSTILE, "answers": replies,
        "documents": (page.Retrieved(HOSTILE, HOSTILE, False, HOSTILE),),
        "changed": False, "spoiled": True, "loss_before": 3.0, "loss_after": 1.0, "seconds": 0.5, "note": HOSTILE,
    }  # fmt: skip
    return page.Card(**{**fields, **changes}, tokens=tokens)


def report(ids: list[int]) -> MemoryReport:
    n = len(ids)
    return MemoryReport(tokens=tuple(ids), token_losses_before=(2.0,) * n, token_losses_after=(0.5,) * n)


def test_everything_is_escaped_and_nothing_is_loaded():
    html = page.demo_page([card((page.Token(HOSTILE, 5.0, 0.1),))], COUNTS, model=HOSTILE)
    assert "<script" not in html
    assert "<img" not in html
    assert html.count("&lt;script&gt;") >= 8
    assert not re.search(r"(src|href)=|url\(|@import|https?://", html.replace("src=x", ""))


def test_shades_before_and_after():
    html = page.demo_page([card((page.Token("Marseille", 9.0, 0.01),))], COUNTS, model="tiny")
    assert re.findall(r'<span class="t (s\d)"[^>]*>Marseille</span>', html) == ["s9", "s0"]
    assert "9.00 → 0.01 nats" in html


def test_what_went_wrong_is_shown_and_what_changed_comes_first():
    cards = [
        card((), question="plain one", spoiled=False),
        card((), question="bad one"),
        card((), question="new", changed=True),
    ]
    html = page.demo_page(cards, COUNTS, model="tiny")
    assert html.index(">new<") < html.index(">bad one<") < html.index(">plain one<")
    assert "Went the other way" in html
    assert "Went the other way" not in page.demo_page(cards[:1], {**COUNTS, "spoiled": []}, model="tiny")


def test_what_was_left_out_is_greyed_with_its_text_and_why():
    documents = (
        page.Retrieved("France", "Marseille.", True, "memorized (relevance 0.90)"),
        page.Retrieved("Velmora", "The Traikan.", False, "not memorized: about something else (relevance 0.12)"),
    )
    html = page.demo_page([card((page.Token("Marseille", 9.0, 0.1),), documents=documents)], COUNTS, model="tiny")
    kept, out = re.findall(r"<li(?: class=.out.)?>\[.*</li>", html)
    assert kept == "<li>[1] France <span>· memorized (relevance 0.90)</span></li>", "its text is shown by its tokens"
    assert out.startswith('<li class="out">[2] Velmora <span>· not memorized: about something else (relevance 0.12)')
    assert "<small>The Traikan.</small>" in out
    assert "Memorized and answered in" in html


def test_nothing_memorized_is_said():
    made = card((), note="Nothing was memorized: no document is about the question", loss_before=float("nan"))
    html = page.demo_page([made], COUNTS, model="tiny")
    assert "Nothing was memorized: no document is about the question." in html
    assert "Memorized and answered in" not in html
    assert "nan" not in html
    assert "Nothing was retrieved." in page.demo_page([card((), documents=())], COUNTS, model="tiny")


def test_levels_rise_and_nan_is_most_surprising():
    shades = [page.level(loss) for loss in (0.0, *page.LEVELS, 99.0)]
    assert shades == [*range(10), 9]
    assert page.level(float("nan")) == 9


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_tokens_give_the_text_back(kind):
    tokenizer = make(kind)
    text = "The capital of France is Paris, and the river of Paris is the Seine."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = page.tokens_of(tokenizer.decode, report(ids), [text])
    assert "".join(t.text for t in tokens).strip() == text
    assert len(tokens) == len(ids)


def test_half_characters_are_shown_together():
    tokenizer = make("bpe")
    ids = tokenizer("a 漢 b", add_special_tokens=False)["input_ids"]
    tokens = page.tokens_of(tokenizer.decode, report(ids), ["a 漢 b"])
    whole = next(t for t in tokens if "漢" in t.text)
    assert whole.before > 2.0, "the losses of its parts add up"
    assert sum(t.before for t in tokens) == pytest.approx(2.0 * len(ids))
    assert "".join(t.text for t in tokens) == "a 漢 b"


def test_documents_are_told_apart():
    tokenizer = make("bpe")
    texts = ["The capital of France.", "Who wrote the book?"]
    parts = [tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in texts]
    tokens = page.tokens_of(tokenizer.decode, report(parts[0] + parts[1]), texts)
    assert ["".join(t.text for t in tokens if t.number == n).strip() for n in (0, 1)] == texts


def test_writing_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "page.html"
    page.write(path, "one \ud800")
    assert path.read_text() == "one ?"
    page.write(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    for refuse in (page.check, lambda where: page.write(where, "x")):
        with pytest.raises(SettingsError, match=r"page.html cannot be written \(No such file.*name another file"):
            refuse(tmp_path / "nowhere" / "page.html")


def test_a_place_is_checked_before_there_is_a_page(tmp_path):
    path = tmp_path / "page.html"
    page.check(path)
    assert not list(tmp_path.iterdir())
    path.write_text("old")
    page.check(path)
    assert path.read_text() == "old"
    with pytest.raises(SettingsError, match="it is a folder"):
        page.check(tmp_path)
