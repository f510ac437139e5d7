"""Invalid requests and samplings are refused when they are created; valid ones are normalised."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from memograft import Document, Request, Sampling
from memograft.errors import EmptyPromptError, MemograftError, SettingsError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` must be a whole number of at least 1, got 0"),
        ({"max_new_tokens": 1.5}, "`max_new_tokens` must be a whole number"),
        ({"max_new_tokens": True}, "`max_new_tokens` must be a whole number"),
        ({"temperature": -0.1}, r"`temperature` must be 0 \(greedy\) or more, got -0.1"),
        ({"temperature": math.inf}, "`temperature` must be"),
        ({"temperature": math.nan}, "`temperature` must be"),
        ({"temperature": None}, "`temperature` must be"),
        ({"temperature": "0.5"}, "`temperature` must be"),
        ({"top_p": None}, "`top_p` must be"),
        ({"top_p": "1"}, "`top_p` must be"),
        ({"stop": None}, "`stop` must be a string or a list of strings, got None; leave it out"),
        ({"stop": 3}, "`stop` must be a string or"),
        ({"top_p": 0.0}, "`top_p` must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "`top_p` must be"),
        ({"top_k": 0}, "`top_k` must be at least 1, or None for all tokens, got 0"),
        ({"top_k": 2.5}, "`top_k` must be"),
        ({"stop": ["a", ""]}, "`stop` must hold strings that are not empty"),
        ({"stop": [3]}, "`stop` must hold strings"),
        ({"min_p": -0.1}, r"`min_p` must be 0 \(keeps all tokens\) to 1, got -0.1"),
        ({"min_p": 1.1}, "`min_p` must be"),
        ({"min_p": None}, "`min_p` must be"),
        ({"repetition_penalty": 0}, r"`repetition_penalty` must be above 0 \(1 has no effect\), or None"),
        ({"repetition_penalty": -1.0}, "`repetition_penalty` must be above 0"),
        ({"repetition_penalty": math.nan}, "`repetition_penalty` must be above 0"),
        ({"repetition_penalty": "1.1"}, "`repetition_penalty` must be above 0"),
        ({"logit_bias": [5]}, r"`logit_bias` must map token ids to numbers, got \[5\]; write \{1234: -100\}"),
        ({"logit_bias": None}, "`logit_bias` must map"),
        ({"logit_bias": {"Paris": 1}}, "keys of `logit_bias` must be token ids, got 'Paris'; `Engine.encode` has"),
        ({"logit_bias": {-1: 1}}, "keys of `logit_bias` must be token ids, got -1"),
        ({"logit_bias": {True: 1}}, "keys of `logit_bias` must be token ids, got True"),
        ({"logit_bias": {3: math.inf}}, "values of `logit_bias` must be finite numbers, got inf for token 3"),
        ({"logit_bias": {3: "1"}}, "values of `logit_bias` must be finite numbers, got '1' for token 3"),
        ({"seed": "x"}, "`seed` must be a whole number or None, got 'x'"),
        ({"seed": 2**64}, "`seed` must be a whole number"),
    ],
)
def test_bad_sampling(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Sampling(**options)


def test_sampling_is_plain_data() -> None:
    assert Sampling(stop="end").stop == ("end",)
    assert Sampling(stop=["a", "b"]) == Sampling(stop=("a", "b"))
    assert hash(Sampling(stop=["a"])) == hash(Sampling(stop="a"))
    assert Sampling(seed=-3).seed == -3
    bias = {5: 1}
    sampling = Sampling(logit_bias=bias)
    bias[6] = 2
    assert sampling.logit_bias == {5: 1.0} == Sampling(logit_bias={"5": 1}).logit_bias  # type: ignore[dict-item]
    assert sampling != Sampling()
    assert hash(sampling) == hash(Sampling(logit_bias={5: 1}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sampling().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, EmptyPromptError, "needs a `question` or at least one message"),
        ({"messages": []}, EmptyPromptError, "needs a `question` or at least one message"),
        ({"question": ""}, EmptyPromptError, "`question` must be text, got ''; ask something"),
        ({"question": 3}, EmptyPromptError, "`question` must be text, got 3"),
        ({"question": "a", "messages": [{}]}, SettingsError, "pass one"),
        ({"question": "a", "overflow": "cut"}, SettingsError, "`overflow` must be .* got 'cut'"),
        (
            {"question": "a", "timeout": 0},
            SettingsError,
            "`timeout` must be a positive number of seconds or None, got 0",
        ),
        ({"question": "a", "timeout": math.nan}, SettingsError, "`timeout` must be"),
        ({"question": "a", "timeout": "10"}, SettingsError, "`timeout` must be"),
        ({"question": "a", "documents": "text"}, SettingsError, r"write documents=\[\.\.\.\]"),
        ({"question": "a", "documents": [3]}, SettingsError, r"documents\[0\] must be a Document"),
        ({"messages": "hello"}, SettingsError, "`messages` must be a list of mappings"),
        ({"messages": [3]}, SettingsError, "`messages` must be a list of mappings"),
        ({"messages": {"role": "user", "content": "x"}}, SettingsError, "`messages` must be a list of mappings"),
    ],
)
def test_bad_requests(options: dict[str, Any], error: type[MemograftError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        Request(**options)
    assert isinstance(caught.value, ValueError)


def test_a_question_is_short_for_a_message() -> None:
    request = Request("Who?", documents=["a", {"text": "b", "id": "x"}, Document("c")])
    assert request.messages == ({"role": "user", "content": "Who?"},)
    assert [d.text for d in request.documents] == ["a", "b", "c"]  # type: ignore[union-attr]
    assert dataclasses.replace(request, sampling=Sampling(1)).messages == request.messages


def test_later_changes_of_what_was_passed_do_nothing() -> None:
    message = {"role": "user", "content": "Who?"}
    request = Request(messages=[message], documents=(d for d in ["a"]))  # type: ignore[arg-type]
    message["content"] = "changed"
    assert request.messages[0]["content"] == "Who?"
    assert len(request.documents) == 1
