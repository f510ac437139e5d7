"""What callers may ask of the tokenizer while the engine's thread uses its own copy: counts, calls, JSON.

Fast tokenizers are not thread-safe, so this holds a second copy, and one caller at a time. Knows nothing of models.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from memograft.errors import SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from memograft.decoding.json_or_text import JsonOrText
    from memograft.decoding.json_schema import JsonSchema, Vocabulary

__all__ = ["Tokens"]


class Tokens:
    """A tokenizer for any thread.

    Args:
        tokenizer: is copied at the first use.
        size: V, the width of the model's logits.
        eos: ids of the tokens that end an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int, eos: Sequence[int]) -> None:
        self._source, self._size, self._eos = tokenizer, size, list(eos)
        self._lock = threading.Lock()

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return copy.deepcopy(self._source)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        from memograft.decoding.json_schema import Vocabulary

        return Vocabulary(self._tokenizer, self._size, self._eos)

    def encode(self, text: str) -> list[int]:
        """Ids of a text by itself, without control tokens around it."""
        with self._lock:
            return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    @property
    def parses_responses(self) -> bool:
        """Whether the tokenizer knows how to take the model's responses apart."""
        return bool(getattr(self._source, "response_template", None))

    def parse_response(self, ids: Sequence[int], prompt: Sequence[int]) -> dict[str, Any]:
        """Take a response to a prompt apart; see `Engine.parse_response`."""
        if not self.parses_responses:
            raise SettingsError(
                "taking a response apart needs a tokenizer that has a `response_template`, and this one has none; set "
                "it, or force an answer of a known shape with `json_schema`"
            )
        if not ids:  # which the tokenizer would take for a batch of none
            return {"role": "assistant", "content": ""}
        with self._lock:
            parsed = self._tokenizer.parse_response(list(ids), prefix=list(prompt))
        if not isinstance(parsed, Mapping):
            raise SettingsError(f"`response_template` must give a mapping, got {type(parsed).__name__}; mend it")
        return dict(parsed)

    def json(self, schema: Mapping[str, object], *, optional: bool = False) -> JsonSchema | JsonOrText:
        """A processor for one answer, which may be text if JSON is `optional`; see `JsonSchema` for what it raises."""
        from memograft.decoding.json_or_text import JsonOrText
        from memograft.decoding.json_schema import JsonSchema

        if not self._eos:
            raise SettingsError(
                "`json_schema` needs a token that ends the answer, and neither model nor tokenizer names one; set "
                "`generation_config.eos_token_id` of the model"
            )
        with self._lock:
            return (JsonOrText if optional else JsonSchema)(self._vocabulary, schema)
