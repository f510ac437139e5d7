"""Answers that are JSON of a given schema, whatever the model would rather say: llguidance masks all other tokens.

A model that rambles inside a string would run out of tokens before the JSON is whole. So, when what is left is about
what an instance needs at least, only tokens that end something are allowed wherever the schema allows any.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memograft.decoding.schemas import closed
from memograft.errors import MissingExtraError, SettingsError

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from llguidance._lib import JsonCompileOptions
    from transformers import PreTrainedTokenizerBase

__all__ = ["JsonSchema", "Vocabulary"]

_COMPACT: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ENDINGS = (b'"', b"}]", b",")  # what ends a string, what ends an object or a list, what comes after a number
_SPARE = 6  # tokens to have left when the end is forced
_NEAR = 3  # lengths of the shortest instance before the limit from where on the way to the end is measured
_MOST = 1024  # tokens of the shortest instance at most, before a schema counts as one that does not say how it ends


class Vocabulary:
    """A tokenizer as llguidance knows it; made once for an engine, since it reads every token.

    Args:
        tokenizer: a fast tokenizer.
        size: V, the width of the model's logits.
        eos: ids of the tokens that end an answer.

    Raises:
        MissingExtraError: llguidance is not installed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int, eos: list[int]) -> None:
        try:
            from llguidance.hf import from_tokenizer
        except ImportError as e:
            raise MissingExtraError(
                "an answer of a JSON schema needs llguidance, which is not installed; "
                "run: pip install 'memograft[structured]'"
            ) from e
        self.size, self.eos = max(size, len(tokenizer)), eos
        self.tokens = from_tokenizer(tokenizer, n_vocab=self.size, eos_token=eos)
        self.texts = [self.tokens.decode_bytes([n]) for n in range(self.size)]
        self.endings = [self._begins(self.texts, ending) for ending in _ENDINGS]
        self.openings = self._begins(self.texts, b",{[")
        self.crossings = torch.tensor([b'"' in text[:-1] for text in self.texts])

    @staticmethod
    def _begins(texts: list[bytes], characters: bytes) -> Tensor:
        return torch.tensor([text[:1] != b"" and text[:1] in characters for text in texts])


class JsonSchema:
    """A logits processor that lets only JSON of one schema through; within a `limit` it sees to it that it ends.

    Starts over when it is not handed the row it knows and one token more: a batch that failed is tried again.

    Attributes:
        least: tokens of the shortest instance, about; 0 if that cannot be told.

    Raises:
        SettingsError: the schema is malformed, or holds what cannot be kept.
    """

    def __init__(self, vocabulary: Vocabulary, schema: Mapping[str, object]) -> None:
        from llguidance import LLMatcher

        self._vocabulary, self._limit = vocabulary, 0
        self._before = torch.zeros(vocabulary.size, dtype=torch.bool)  # what was allowed one token ago
        try:
            plain = json.loads(json.dumps(schema))  # which refuses what holds itself
            self._grammar = LLMatcher.grammar_from_json_schema(json.dumps(closed(plain)), defaults=_COMPACT)
        except (TypeError, ValueError) as e:
            raise SettingsError(f"`json_schema` must be a JSON schema, got one that cannot be read: {e}") from e
        self._matcher = LLMatcher(vocabulary.tokens, self._grammar, log_level=0)
        if self._matcher.is_error():
            raise SettingsError(
                f"`json_schema` holds what cannot be kept: {self._matcher.get_error().strip()}; simplify the schema"
            )
        self.least = self._shortest(self._matcher.deep_copy(), self._before)
        self._start: int | None = None
        self._length = 0
        self._ending = False  # whether the way to the end is all that is left

    def limit(self, tokens: int) -> None:
        """Let the answer have so many tokens at most.

        Raises:
            SettingsError: no instance is that short.
        """
        if self.least > tokens:
            raise SettingsError(
                f"JSON of this schema takes about {self.least} tokens or more, and the answer may have {tokens}; allow "
                "more `max_new_tokens`, shorten the prompt, or require fewer fields"
            )
        self._limit = tokens

    def beginnings(self) -> Tensor:
        """(V,) bool: the tokens that an instance can begin with."""
        return self._allowed(self._matcher.deep_copy())

    def restart(self, tokens: int) -> None:
        """Begin with the next token, and end within so many; see `limit`."""
        self.limit(tokens)
        self._start = None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """(1, T), (1, V) -> (1, V), minus infinity where a token would break the schema."""
        length = int(ids.shape[1])
        if self._start is None or length != self._length + 1:
            self._start, self._ending = length, False
            self._matcher.reset()
        elif not self._matcher.consume_token(int(ids[0, -1])):
            raise RuntimeError(f"the answer left its `json_schema`: {self._matcher.get_error()}; use fewer processors")
        self._length = length
        before, self._before = self._before, self._allowed(self._matcher)
        allowed = self._before
        left = self._limit - (length - self._start)
        if not self._ending and left <= _NEAR * self.least + _SPARE:
            spare = left - self._shortest(self._matcher.deep_copy(), before)
            self._ending = spare <= _SPARE
            if spare <= self.least + _SPARE:
                allowed = self._without_openings(allowed)
        if self._ending:
            allowed = self._next(self._matcher, allowed, before)
        return scores.masked_fill(~allowed[: scores.shape[1]].to(scores.device), -torch.inf)

    def _allowed(self, matcher: LLMatcher) -> Tensor:
        """(V,) bool."""
        bias = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8)
        return bias[: self._vocabulary.size] > 0

    def _without_openings(self, allowed: Tensor) -> Tensor:
        """Without what begins another member, list or object where one may end, or does so with the end of a string:
        one more may be longer than what is left.
        """
        quote, close, _ = (allowed & ending[: len(allowed)] for ending in self._vocabulary.endings)
        avoided = self._vocabulary.crossings.clone()
        if bool(close.any()) and not bool(quote.any()):  # not inside a string
            avoided |= self._vocabulary.openings
        rest = allowed & ~avoided[: len(allowed)]
        return rest if bool(rest.any()) else allowed

    def _next(self, matcher: LLMatcher, allowed: Tensor, before: Tensor) -> Tensor:
        """Of what is allowed: what the schema forces; or what ends something; or what was not allowed `before`, and
        leads on, as the space does in "[a-z]+ [a-z]+"; or all of it.
        """
        if ahead := matcher.compute_ff_tokens():
            forced = torch.zeros_like(allowed)
            forced[ahead[0]] = True
            return forced
        for some in (*(ending[: len(allowed)] for ending in self._vocabulary.endings), ~before):
            if bool((allowed & some).any()):
                return allowed & some
        return allowed

    def _shortest(self, matcher: LLMatcher, before: Tensor) -> int:
        """Tokens until a matcher, which is used up, is at an end, if all ends as soon as it can; 0 if none is found."""
        for count in range(_MOST):
            if matcher.is_accepting() or (matcher.is_stopped() and count):
                return count
            allowed = self._allowed(matcher)  # this is what finds out that there is nothing to say
            if matcher.is_stopped():
                raise SettingsError("`json_schema` refers to itself with no way out, so no JSON keeps it; give it one")
            token = int(self._next(matcher, allowed, before).int().argmax())
            before = allowed
            if not matcher.consume_token(token):
                said = matcher.get_error().strip().partition("\n")[0]
                raise SettingsError(
                    f"`json_schema` is more than can be kept ({said}); use fewer properties, or levels that end"
                    if "limit" in said or "max is" in said
                    else "`json_schema` asks for characters that the tokenizer has no tokens for; use another model"
                )
        return 0  # a pattern such as "[^@]+@[^@]+[.][a-z]+" does not say what leads out of it: no promise, no refusal
