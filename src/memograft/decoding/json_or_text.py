"""Answers that are either JSON of a schema or plain text, as the model chooses; used for optional tool calls.

The first character decides. If the model begins with a character that starts an instance of the schema ("{" for an
object), the rest must follow the schema. Any other answer is text and is not constrained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from memograft.decoding.json_schema import JsonSchema, Vocabulary

__all__ = ["JsonOrText"]


class JsonOrText:
    """A logits processor that allows JSON of one schema, or text that begins differently.

    Leading white space does not decide. Like `JsonSchema`, it starts over if its input is not the previous row plus one
    token.

    Raises:
        SettingsError: the schema is malformed, or has something that llguidance does not support.
    """

    def __init__(self, vocabulary: Vocabulary, schema: Mapping[str, object]) -> None:
        self._json = JsonSchema(vocabulary, schema)
        texts = [text.lstrip() for text in vocabulary.texts]
        first = {texts[n][:1] for n in torch.nonzero(self._json.beginnings()).flatten().tolist()} - {b""}
        self._begin = torch.tensor([text[:1] in first for text in texts])  # (V,) bool
        self._blank = torch.tensor([text != b"" and not text.strip() for text in vocabulary.texts])
        self._limit = 0
        self._start: int | None = None
        self._length = 0
        self._form: Literal["open", "json", "text"] = "open"

    def limit(self, tokens: int) -> None:
        """Limit the answer to this many tokens. If no instance is that short, the answer will be text."""
        self._limit = tokens

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """(1, T), (1, V) -> (1, V), minus infinity for tokens that would make JSON that has begun invalid."""
        length = int(ids.shape[1])
        if self._start is None or length != self._length + 1:
            self._start, self._form = length, "open"
        elif self._form == "open":
            token = int(ids[0, -1])
            if not bool(self._blank[token]):
                self._form = "json" if bool(self._begin[token]) else "text"
        self._length = length
        if self._form == "text":
            return scores
        if self._form == "json":
            return self._json(ids, scores)
        begin = self._begin[: scores.shape[1]].to(scores.device)
        left = self._limit - (length - self._start)
        if self._json.least > left:
            return scores.masked_fill(begin, -torch.inf)
        self._json.restart(left)
        return torch.where(begin, self._json(ids, scores), scores)
