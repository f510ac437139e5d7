"""Documents that a template has put into a prompt are recovered, and the question without them."""

from __future__ import annotations

import warnings

import pytest

from memograft.chat import Unstuffed, fields_of, split_context, unmemorized, unstuffed, warn_of_context

ASKING = (
    "Use the following pieces of context to answer the question at the end.\n\n{context}\n\nQuestion: {question}\n"
    "Helpful Answer:"
)
TELLING = "Answer from this:\n\n{context}"
DOCUMENTS = ["Bergamot is a citrus.", "Velmora has a harbour.\nIt is deep."]


def rendered(wording: str, **fields: str) -> str:
    return wording.format(**fields)


@pytest.mark.parametrize("separator", [None, "\n\n"])
def test_documents_and_the_question(separator: str | None) -> None:
    text = rendered(ASKING, context="\n\n".join(DOCUMENTS), question="What is bergamot?")
    found = unstuffed(f"{text}\n", [TELLING, ASKING], separator=separator)
    assert found is not None
    assert [d.text for d in found.documents] == DOCUMENTS
    assert found.fields == {"question": "What is bergamot?"}


def test_a_template_without_a_question() -> None:
    found = unstuffed(rendered(TELLING, context="A\n---\nB"), [ASKING, TELLING], separator="\n---\n")
    assert found is not None
    assert [d.text for d in found.documents] == ["A", "B"]
    assert found.fields == {}
    assert unstuffed(rendered(TELLING, context=""), [TELLING]) == Unstuffed(())


def test_a_document_may_hold_the_words_behind_the_context() -> None:
    text = rendered(ASKING, context="A form:\n\nQuestion: why?\nHelpful Answer: so.", question="Is it a form?")
    found = unstuffed(text, [ASKING])
    assert found is not None
    assert [d.text for d in found.documents] == ["A form:", "Question: why?\nHelpful Answer: so."]
    assert found.fields == {"question": "Is it a form?"}


def test_a_question_before_the_context() -> None:
    found = unstuffed(rendered("{q} of {c}.", q="What", c="that"), ["{q} of {c}."], context="c")
    assert found is not None
    assert ([d.text for d in found.documents], found.fields) == (["that"], {"q": "What"})


@pytest.mark.parametrize(
    ("text", "wording"),
    [
        ("What is bergamot?", ASKING),
        (ASKING.partition("{context}")[0] + "A", ASKING),
        ("Use the following pieces of context. Question: why?\nHelpful Answer:", ASKING),
        ("What is it?", "{question}"),
        ("as it stands", "as it stands"),
        ("a b c", "{context} b {context}"),
        ("aa", "aa{context}a"),
    ],
)
def test_other_texts_are_left_alone(text: str, wording: str) -> None:
    assert unstuffed(text, [wording]) is None


def test_a_name_that_stands_twice() -> None:
    assert unstuffed("x: d (x)", ["{question}: {context} ({question})"]) is not None
    assert unstuffed("x: d (y)", ["{question}: {context} ({question})"]) is None


def test_the_fields_of_a_template() -> None:
    assert fields_of("Tools: a, b\nBe brief.", "Tools: {tools}\n{context}!") is None
    assert fields_of("Tools: a, b\nBe brief.", "Tools: {tools}\n{context}") == {"tools": "a, b", "context": "Be brief."}
    assert fields_of("Tools: a", " Tools: {tools}\n") == {"tools": "a"}  # chat models strip messages


def test_packed_contexts() -> None:
    assert [d.text for d in split_context(" A.\n \n\nB\nb. ")] == ["A.", "B\nb."]
    assert [d.text for d in split_context("A.\nB\nb.\n\nC", by_line=True)] == ["A.", "B\nb.", "C"]
    assert split_context(" \n") == []


def test_a_context_in_a_text_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmemorized, "_warned", False)
    page = "The atlas of the southern seas was printed in Lisbon in the year 1712, and nobody has read it since then."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in ("", "What is the context: a word?", f"In what context was it said? {page}", f"{page} Context:"):
            warn_of_context([text], "pass them")
    with pytest.warns(UserWarning, match="hold documents as text, which are read and not memorized; pass them"):
        warn_of_context(["Hm.", f"Use the context below:\n\n{page}"], "pass them")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_context([f"<context>{page}</context>"], "pass them")
