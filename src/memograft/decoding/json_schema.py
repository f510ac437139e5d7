"""Answers that are JSON of a given schema: llguidance computes the allowed tokens, all others are masked.

Small models may not end a string before the token limit. So once the tokens left are about as many as the shortest
instance needs, only tokens that end something are allowed, wherever the schema allows such tokens.
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
_ENDINGS = (b'"', b"}]", b",")  # end of a string, end of an object or list, after a number
_SPARE = 6  # tokens left over when the end is forced
_NEAR = 3  # the distance to the end is computed from this many lengths of the shortest instance before the limit
_MOST = 1024  # tokens after which the search for the shortest instance stops


class Vocabulary:
    """A tokenizer in llguidance's form. Made once per engine, because it reads every token.

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
    """A logits processor that allows only JSON of one schema, and makes it end within a `limit`.

    It starts over if its input is not the previous row plus one token, which happens when a failed batch is repeated.

    Attributes:
        least: approximate number of tokens of the shortest instance; 0 if unknown.

    Raises:
        SettingsError: the schema is malformed, or has something that llguidance does not support.
    """

    def __init__(self, vocabulary: Vocabulary, schema: Mapping[str, object]) -> None:
        from llguidance import LLMatcher

        self._vocabulary, self._limit = vocabulary, 0
        self._before = torch.zeros(vocabulary.size, dtype=torch.bool)  # allowed at the previous token
        try:
            plain = json.loads(json.dumps(schema))  # refuses a schema that contains itself
            self._grammar = LLMatcher.grammar_from_json_schema(json.dumps(closed(plain)), defaults=_COMPACT)
        except (TypeError, ValueError) as e:
            raise SettingsError(f"`json_schema` must be a JSON schema, got one that cannot be read: {e}") from e
        self._matcher = LLMatcher(vocabulary.tokens, self._grammar, log_level=0)
        if self._matcher.is_error():
            raise SettingsError(
                f"`json_schema` is not supported: {self._matcher.get_error().strip()}; simplify the schema"
            )
        self.least = self._shortest(self._matcher.deep_copy(), self._before)
        self._start: int | None = None
        self._length = 0
        self._ending = False  # whether only tokens that lead to the end are allowed

    def limit(self, tokens: int) -> None:
        """Limit the answer to this many tokens.

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
        """Start an instance at the next token, within this many tokens; see `limit`."""
        self.limit(tokens)
        self._start = None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """(1, T), (1, V) -> (1, V), minus infinity for tokens that would violate the schema."""
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
        """Remove tokens that begin another member, list or object where one may end, also those that first end a
        string.

        Another member could be longer than the tokens left.
        """
        quote, close, _ = (allowed & ending[: len(allowed)] for ending in self._vocabulary.endings)
        avoided = self._vocabulary.crossings.clone()
        if bool(close.any()) and not bool(quote.any()):  # not inside a string
            avoided |= self._vocabulary.openings
        rest = allowed & ~avoided[: len(allowed)]
        return rest if bool(rest.any()) else allowed

    def _next(self, matcher: LLMatcher, allowed: Tensor, before: Tensor) -> Tensor:
        """Reduce the allowed tokens to the first non-empty set of these: what the schema forces; tokens that end
        something; tokens not allowed `before`, which make progress, such as the space in "[a-z]+ [a-z]+"; all of them.
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
        """Number of tokens to the nearest end for a matcher, which is used up; 0 if none is found."""
        for count in range(_MOST):
            if matcher.is_accepting() or (matcher.is_stopped() and count):
                return count
            allowed = self._allowed(matcher)  # also detects that no token is possible
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
        return 0  # e.g. for the pattern "[^@]+@[^@]+[.][a-z]+": then the end is not enforced
