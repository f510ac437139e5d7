"""Answers as plain data: messages, usage, report, citations; and kinds of failures."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from memograft import Datastore, Document, Engine, FastMem, MemoryReport, Request, Rtd, Sampling
from memograft.chat import (
    Call,
    InvalidCall,
    Reading,
    citations_of,
    excerpt,
    failure_of,
    finish_reason_of,
    logprobs_of,
    message_of,
    message_text,
    report_of,
    title_of,
    to_examples,
    unknown_names,
    usage_of,
)
from memograft.errors import (
    EngineClosedError,
    PromptTooLongError,
    RequestCancelledError,
    RequestTimeoutError,
    SettingsError,
    StoreLockedError,
)

QUESTION, LISBON = "What is the capital of Australia?", "The capital of Australia is Lisbon."


def test_the_report_has_the_same_keys_with_and_without_a_memory(tiny: Engine) -> None:
    plainly = report_of(tiny.answer(QUESTION, [LISBON]))
    answer = tiny.answer(QUESTION, [Document(LISBON, "l")], memory=FastMem())
    memorized = report_of(answer)
    assert plainly.keys() == memorized.keys()
    assert (plainly["memorized"], plainly["steps"], plainly["kl"], plainly["loss_before"]) == ([], 0, None, None)
    assert (plainly["rolled_back"], plainly["reason"], plainly["references"]) == (False, None, None)
    assert memorized["memorized"] == memorized["documents"] == ["l"]
    assert answer.memory is not None
    assert memorized["loss_after"] == pytest.approx(answer.memory.loss_after)
    assert set(memorized["milliseconds"]) == {"prefill", "memorize", "decode"}  # type: ignore[call-overload]
    assert json.loads(json.dumps(memorized, allow_nan=False)) == memorized


def test_what_was_rolled_back_is_not_memorized(tiny: Engine) -> None:
    answer = tiny.answer(QUESTION, [LISBON], memory=FastMem(max_kl=1e-9, relevance=None))
    assert answer.memory is not None
    assert answer.memory.rolled_back
    assert answer.memory.documents
    report = report_of(answer)
    assert (report["memorized"], report["rolled_back"]) == ([], True)
    nothing = replace(answer, memory=MemoryReport(reason="no document is about it", left_out=("d",)))
    assert (report_of(nothing)["memorized"], report_of(nothing)["left_out"]) == ([], ["d"])


def test_usage_and_ends(tiny: Engine) -> None:
    answer = tiny.answer(Request(QUESTION, logprobs=2, sampling=Sampling(4)))
    usage = usage_of(answer)
    assert usage["total_tokens"] == len(answer.prompt_ids) + 4
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    called = Reading("", (Call("f", {"a": 1}, "c1"),))
    assert finish_reason_of(answer, called) == "length"
    assert finish_reason_of(replace(answer, finish_reason="stop"), called) == "tool_calls"
    assert finish_reason_of(replace(answer, finish_reason="stop"), Reading("a")) == "stop"
    logprobs: Any = logprobs_of(answer)
    assert len(logprobs["content"]) == 4
    first = logprobs["content"][0]
    assert bytes(first["bytes"]).decode() == first["token"]
    assert first["top_logprobs"][0]["logprob"] == pytest.approx(first["logprob"])
    assert logprobs_of(tiny.answer(QUESTION, sampling=Sampling(1))) is None


def test_messages() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": "é"}'}}
    called = Reading("", (Call("f", {"a": "é"}, "c1"),), reasoning="Hm.")
    assert message_of(called) == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "Hm.",
        "tool_calls": [call],
    }
    assert message_of(Reading("Hi", (), (InvalidCall(None, "{", "no"),))) == {"role": "assistant", "content": "Hi"}
    assert (Reading("Hello").rest("He"), Reading("Hello").rest("x")) == ("llo", "")


def test_what_a_datastore_moved(tiny: Engine) -> None:
    example = {"prompt": "What is the capital of France?", "answer": "The capital of France is Velmora.", "id": "e1"}
    store = Datastore.build(tiny, [example | {"metadata": {"title": "T"}}], progress=False)
    answer = tiny.answer(
        Request(example["prompt"], processors=[Rtd(store, weight=1.0, gate=None)], sampling=Sampling(16))
    )
    references: Any = report_of(answer)["references"]
    source = {"id": "e1", "text": example["answer"], "prompt": example["prompt"], "metadata": {"title": "T"}}
    assert [{k: v for k, v in s.items() if k != "probability"} for s in references["sources"]] == [source]
    (whole,) = references["citations"]
    assert whole["text"] == answer.text[whole["start"] : whole["end"]]
    assert whole["source"] == source
    part = answer.text[whole["start"] + 4 :]
    (cut,) = citations_of(answer, part)
    assert (cut["start"], cut["text"]) == (0, part[: whole["end"] - whole["start"] - 4])
    assert citations_of(answer, "something else") == []
    json.dumps(references, allow_nan=False)
    assert excerpt("a" * 400 + "b" + "c" * 400, "b") == "a" * 150 + "b" + "c" * 149
    assert excerpt("short", "b") == "short"


def test_failures_by_kind() -> None:
    kinds = {
        "too long": PromptTooLongError("p", tokens=2, limit=1),
        "timeout": RequestTimeoutError("t"),
        "closed": EngineClosedError("c"),
        "cancelled": RequestCancelledError("g"),
        "other": OSError("o"),
    }
    assert {failure_of(error): error for error in kinds.values()} == kinds
    assert failure_of(SettingsError("s")) == failure_of(StoreLockedError("l")) == "invalid"
    assert message_text(SettingsError("allow more `max_new_tokens`")) == "allow more `max_tokens`"


@pytest.mark.parametrize(
    ("title", "prompt", "shown"), [("T", "P?", "T"), ("", "P?", "P?"), (7, "P?", "P?"), (None, "", "s"), (7, "", "s")]
)
def test_what_a_source_is_called(title: Any, prompt: str, shown: str) -> None:
    assert title_of({"id": "s", "text": "x", "prompt": prompt, "metadata": {"title": title}}) == shown


def test_names_that_there_are_not() -> None:
    known = ["seed", "max_tokens"]
    assert unknown_names(["seed"], known) == unknown_names([], known) == ""
    assert unknown_names(["sed", "x"], known) == "'sed', 'x' (did you mean 'seed'?); there are: max_tokens, seed"
    assert unknown_names(["x"], known) == "'x'; there are: max_tokens, seed"


class Page:
    """A framework's own document."""


def plain(item: object) -> object:
    return Document("P", "p", {"a": {1}}) if isinstance(item, Page) else item


ASKED = {"role": "user", "content": [{"type": "document", "text": "D"}, {"type": "text", "text": "Q?"}]}
ANSWERED = {"role": "assistant", "content": [{"type": "text", "text": "A."}]}


def test_examples_in_all_forms() -> None:
    history = [ASKED, ANSWERED, {"role": "user", "content": "R?"}, {"role": "assistant", "content": "B."}]
    items = [
        "T",
        Page(),
        history,
        ([ASKED], "A."),
        ("Q?", ANSWERED),
        (["D"], "Q?", "A."),
        {"page_content": "T", "id": "t"},
    ]
    found = list(to_examples(items, plain=plain))
    assert [sorted(example) for example in found[:2]] == [["text"], ["id", "metadata", "text"]]
    assert found[1] == {"text": "P", "id": "p", "metadata": {"a": "{1}"}}
    first, second = found[2:4]
    assert first["messages"] == [{"role": "user", "content": "Q?"}]
    assert (first["answer"], second["answer"]) == ("A.", "B.")
    assert first["documents"] == found[4]["documents"] == found[6]["documents"] == (Document("D"),)
    assert [message["content"] for message in second["messages"]] == ["Q?", "A.", "R?"]  # type: ignore[attr-defined]
    assert found[5] == {"prompt": "Q?", "documents": (), "answer": "A."}
    assert found[7] == {"text": "T", "id": "t"}
    asked = {"messages": [ASKED], "answer": "A.", "metadata": {"d": Page}}
    (example,) = to_examples([asked])
    assert example["metadata"] == {"d": str(Page)}
    assert iter(to_examples(iter(["T"]))) is not None


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ("T", r"`examples` must be a list of examples, got one str; write examples=\[...\]"),
        (Page(), "`examples` must be a list of examples, got one Page"),
        ([3], r"examples\[0\]: an example must be a Document, .*, got int; a conversation is one example: write \[\["),
        (["T", ASKED], r"examples\[1\]: an example must be a Document, .*, got dict; a conversation is one example"),
        ([("a", "b", "c", "d")], r"examples\[0\]: an example must be .*, got tuple of 4; write messages in a list"),
        ([[ASKED]], r"examples\[0\]: a conversation is learned from the assistant's messages .*, got user; add"),
        ([([], "A.")], r"examples\[0\]: what is asked must be a text or a list of messages, got list; write"),
        ([("Q?", "")], r"examples\[0\] needs a text to learn from, got ''"),
        ([{"text": "T", "metadata": 3}], r"examples\[0\]: its `metadata` must be a mapping, got int; write"),
    ],
)
def test_what_is_no_example(examples: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        to_examples(examples, plain=plain)
