"""What notebooks show of answers and memory reports: escaped, without scripts, with their content."""

from __future__ import annotations

import re
from html import unescape

from memograft.documents import Source
from memograft.memory.report import MemoryReport
from memograft.request import Answer, Reference, Timings, TokenLogprob, TokenReferences, Usage

HOSTILE = '<script>alert("x")</script> & <img src=x onerror=y>'
TAG = re.compile(r"<[^>]*>")


def answer(text: str, **fields) -> Answer:
    return Answer(text, (), "stop", Usage(1, 0, 1), fields.pop("memory", None), Timings(0, 0, 0), **fields)


def test_everything_is_escaped():
    report = MemoryReport(
        documents=(HOSTILE,), left_out=(HOSTILE,), reason=HOSTILE, warnings=(HOSTILE,), settings={"kind": HOSTILE}
    )
    references = (TokenReferences(1, HOSTILE, (Reference(Source("a", HOSTILE), 0, 0.5),), 0, len(HOSTILE)),)
    plain = answer(HOSTILE, memory=report, references=references)
    shaded = answer(HOSTILE, logprobs=(TokenLogprob(1, HOSTILE, -0.5),))
    for html, times in ((plain._repr_html_(), 7), (shaded._repr_html_(), 1)):
        assert "<script" not in html
        assert "<img" not in html
        assert html.count("&lt;script&gt;") == times


def test_tokens_are_shaded_by_their_probability():
    logprobs = (TokenLogprob(1, "Tor", 0.0), TokenLogprob(2, "stad", -100.0), TokenLogprob(3, "<end>", -0.1))
    html = answer("Torstad", logprobs=logprobs)._repr_html_()
    assert re.findall(r'/ ([\d.]+)\)" title="probability ([\d.]+)">(\w+)<', html) == [
        ("0.00", "1.000", "Tor"),
        ("0.60", "0.000", "stad"),
    ]
    assert TAG.sub("", html) == "Torstad"


def test_tokens_that_are_not_the_answer_do_not_replace_it():
    html = answer("é", logprobs=(TokenLogprob(1, "\ufffd", -1.0), TokenLogprob(2, "\ufffd", -1.0)))._repr_html_()
    assert TAG.sub("", html) == "é"
    assert "<span" not in html


def cells(report: MemoryReport) -> dict[str, str]:
    return dict(re.findall(r"<th[^>]*>(.*?)</th><td[^>]*>(.*?)</td>", unescape(report._repr_html_())))


def test_a_report_is_a_small_table():
    report = MemoryReport(
        steps=10, loss_before=6.5, loss_after=1.25, documents=("a", "b"), left_out=("c",), relevance=(0.9, 0.8, 0.1),
        settings={"steps": 10},
    )  # fmt: skip
    assert cells(report) == {
        "memory": "fastmem",
        "memorized": "a, b (10 steps)",
        "left out": "c",
        "relevance": "0.90, 0.80, 0.10",
        "loss": "6.50 → 1.25 nats per token",
    }
    assert cells(MemoryReport(documents=("a",), reused=True, settings={"kind": "gist"})) == {
        "memory": "gist",
        "memorized": "a (reused)",
    }


def test_a_report_says_why_nothing_was_memorized():
    assert cells(MemoryReport(reason="no document is relevant")) == {
        "memorized": "nothing",
        "reason": "no document is relevant",
    }
    rolled_back = MemoryReport(documents=("a",), rolled_back=True, reason="the loss rose")
    assert cells(rolled_back) == {"memorized": "no, rolled back", "reason": "the loss rose"}


def test_an_answer_shows_its_report_and_sources():
    references = (TokenReferences(1, "Torstad", (Reference(Source("a", "x" * 200), 0, 0.5),), 0, 7),)
    report = MemoryReport(documents=("page",), steps=3)
    html = answer("Torstad", memory=report, references=references)._repr_html_()
    assert report._repr_html_() in html
    assert re.search(r">0\.50</th><td[^>]*>x{160}…</td>", html)
