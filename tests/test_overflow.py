"""Too long prompts are refused with the counts, or shortened from the lowest rank, which is always reported."""

from __future__ import annotations

import re

import pytest

from memograft.documents import Document
from memograft.errors import PromptTooLongError
from memograft.prompt import builder
from memograft.prompt.builder import PromptBuilder
from memograft.prompt.overflow import Fitted, fit
from memograft.request import Request, Sampling
from tokenizers_ import NATIVE_TEMPLATE, make

BUILDER = PromptBuilder(make("bpe"))
DOCUMENTS = tuple(Document(f"Document {n} says: the river of Paris is the Seine. " * 3) for n in range(4))


def fitted(
    window: int, overflow: str, documents: tuple[Document, ...] = DOCUMENTS, builder: PromptBuilder = BUILDER
) -> Fitted:
    request = Request("Who wrote it?", overflow=overflow, sampling=Sampling(8))
    return fit(BUILDER, request, documents, window)


def length(documents: tuple[Document, ...]) -> int:
    return len(BUILDER.build([{"role": "user", "content": "Who wrote it?"}], documents).ids)


def test_what_fits_is_left_as_it_is() -> None:
    exact = fitted(length(DOCUMENTS) + 8, "error")
    assert exact == Fitted(BUILDER.build([{"role": "user", "content": "Who wrote it?"}], DOCUMENTS))


def test_the_error_says_how_many_tokens_there_are_and_fit() -> None:
    tokens = length(DOCUMENTS)
    message = (
        f"the prompt with its 4 documents has {tokens} tokens, and {tokens - 1} fit ({tokens + 7} positions minus the "
        'room for an answer); pass fewer or shorter documents, or overflow="drop" or "truncate"'
    )
    with pytest.raises(PromptTooLongError, match=re.escape(message)) as caught:
        fitted(tokens + 7, "error")
    assert (caught.value.tokens, caught.value.limit) == (tokens, tokens - 1)


def test_an_answer_is_promised_an_eighth_of_the_window_at_most() -> None:
    request = Request("Who wrote it?", sampling=Sampling(10_000))
    tokens = length(DOCUMENTS)
    fit(BUILDER, request, DOCUMENTS, tokens * 8 // 7 + 1)
    with pytest.raises(PromptTooLongError, match=f"has {tokens} tokens"):
        fit(BUILDER, request, DOCUMENTS, tokens)


def test_thousands_of_documents_are_not_left_out_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    many = tuple(Document("" if n % 7 == 6 else f"Document {n} says {n}.") for n in range(3000))
    built: list[int] = []
    build = PromptBuilder.build
    monkeypatch.setattr(PromptBuilder, "build", lambda *args: built.append(len(args[2])) or build(*args))
    kept = fitted(200, "drop", many)
    assert len(built) <= 5
    assert kept.prompt.documents == many[: len(kept.prompt.documents)]
    assert len(kept.prompt.documents) + len(kept.dropped) == 3000
    one_more = many[: len(kept.prompt.documents) + 1]
    assert length(one_more) > 200 - 8  # no more than necessary was left out


def test_a_template_may_show_documents_in_an_order_of_its_own() -> None:
    shown = "{% for d in documents | reverse %}{{ d['text'] }} {% endfor %}"
    backwards = "{{ bos_token }}" + shown + "{{ messages[0]['content'] }}"
    builder = PromptBuilder(make("bpe", backwards))
    request = Request("Who wrote it?", overflow="drop", sampling=Sampling(8))
    window = len(builder.build(request.messages, DOCUMENTS[:3]).ids) + 8
    assert fit(builder, request, DOCUMENTS, window).dropped == DOCUMENTS[3:]


def test_drop_leaves_out_the_lowest_ranked() -> None:
    kept = fitted(length(DOCUMENTS[:2]) + 8, "drop")
    assert kept.prompt.documents == DOCUMENTS[:2]
    assert kept.dropped == DOCUMENTS[2:]
    assert kept.truncated == ()


def test_truncate_keeps_a_prefix_of_the_lowest_ranked() -> None:
    kept = fitted(length(DOCUMENTS[:2]) + 8 + 25, "truncate")
    assert kept.prompt.documents[:2] == DOCUMENTS[:2]
    shortened = kept.prompt.documents[2]
    assert 0 < len(shortened.text) < len(DOCUMENTS[2].text)
    assert DOCUMENTS[2].text.startswith(shortened.text)
    assert shortened.id == DOCUMENTS[2].id
    assert (kept.truncated, kept.dropped) == (DOCUMENTS[2:3], DOCUMENTS[3:])
    assert len(kept.prompt.ids) <= length(DOCUMENTS[:2]) + 25


def test_truncate_leaves_out_what_does_not_fit_at_all() -> None:
    kept = fitted(length(DOCUMENTS[:1]) + 8, "truncate")
    assert (kept.prompt.documents, kept.dropped, kept.truncated) == (DOCUMENTS[:1], DOCUMENTS[1:], ())


@pytest.mark.parametrize("overflow", ["drop", "truncate"])
def test_too_long_even_without_documents(overflow: str) -> None:
    with pytest.raises(
        PromptTooLongError, match=r"with its 0 documents has \d+ tokens, and 8 fit.*shorten the messages"
    ):
        fitted(9, overflow)


@pytest.mark.parametrize(
    "text",
    ["🦜", "🦜" * 40, "</s>" * 30, "\udc00" * 20, "\n" * 60, "a</s>🦜 <|user|> " * 20],
    ids=["bird", "birds", "ends", "surrogates", "lines", "forgeries"],
)
@pytest.mark.parametrize("builder", [BUILDER, PromptBuilder(make("bpe", NATIVE_TEMPLATE))], ids=["turn", "native"])
def test_truncating_always_ends(text: str, builder: PromptBuilder) -> None:
    """A character may have several tokens, so cutting tokens alone may not shorten a text."""
    bare = len(builder.build([{"role": "user", "content": "Who wrote it?"}]).ids)
    for room in range(0, 60, 7):
        request = Request("Who wrote it?", overflow="truncate", sampling=Sampling(1))
        kept = fit(builder, request, (Document(text),), bare + room + 1)
        assert len(kept.prompt.ids) <= bare + room
        assert kept.dropped or kept.truncated or kept.prompt.documents == (Document(text),)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_cut_is_shorter_by_so_many_tokens(kind: str) -> None:
    builder = PromptBuilder(make(kind))
    text = "The capital of France is Paris, and the river of Paris is the Seine."
    whole = len(builder.tokenizer(text, add_special_tokens=False)["input_ids"])
    for tokens in range(whole + 2):
        short = builder.cut(text, tokens)
        assert text.startswith(short)
        left = len(builder.tokenizer(short, add_special_tokens=False)["input_ids"])
        assert left <= max(0, whole - max(tokens, 1)) + 1
    assert builder.cut(text, whole) == builder.cut("", 1) == ""


ENDLESS = {"words": "The river of Paris is the Seine. " * 8_000, "letters": "qx" * 100_000}


@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS)
@pytest.mark.parametrize("overflow", ["drop", "truncate"])
def test_of_an_endless_document_only_the_beginning_is_read(
    text: str, overflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = (Document("The river of Paris is the Seine."), Document(text, id="endless"))
    read: list[int] = []
    encode = PromptBuilder._encode_piece
    with monkeypatch.context() as counted:
        counted.setattr(
            PromptBuilder, "_encode_piece", lambda *args, **kw: read.append(len(args[1])) or encode(*args, **kw)
        )
        kept = fitted(300, overflow, documents)
    assert sum(read) < len(text) / 2
    assert (kept.dropped, kept.truncated) == ((documents[1:], ()) if overflow == "drop" else ((), documents[1:]))
    monkeypatch.setattr(builder, "_CHUNK", 10**9)
    assert kept == fitted(300, overflow, documents)  # as if it had been tokenized completely


def test_the_error_of_what_is_endless_says_that_it_was_not_counted_to_the_end() -> None:
    with pytest.raises(PromptTooLongError, match=r"its 1 documents has more than \d+ tokens, and 292 fit.*pass fewer"):
        fitted(300, "error", (Document(ENDLESS["words"]),))
    question = ENDLESS["letters"] + " Who wrote it?"
    request = Request(question, query="Who wrote it?", overflow="drop", sampling=Sampling(8))
    with pytest.raises(PromptTooLongError, match=r"its 0 documents has more than \d+ tokens, .*shorten the messages"):
        fit(BUILDER, request, DOCUMENTS, 300)


def test_a_document_that_just_fits_is_read_to_its_end() -> None:
    documents = (Document(ENDLESS["words"][:60_000]),)
    kept = fitted(length(documents) + 8, "error", documents)
    assert kept.prompt.documents == documents
