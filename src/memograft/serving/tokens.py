"""A copy of the tokenizer for callers' threads: token counts, parsed responses, JSON schemas.

Fast tokenizers are not thread-safe, and the engine's thread uses the original. Callers take turns.
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
    """A tokenizer that any thread can use.

    Args:
        tokenizer: copied at the first use.
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
        """Token ids of a text, without special tokens around it."""
        with self._lock:
            return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, with special tokens."""
        with self._lock:
            return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    @property
    def parses_responses(self) -> bool:
        """Whether the tokenizer can parse the model's responses."""
        return bool(getattr(self._source, "response_template", None))

    def parse_response(self, ids: Sequence[int], prompt: Sequence[int]) -> dict[str, Any]:
        """Parse a response to a prompt; see `Engine.parse_response`."""
        if not self.parses_responses:
            raise SettingsError(
                "parsing a response needs a tokenizer with a `response_template`, and this one has none; set it, or "
                "require a known format with `json_schema`"
            )
        if not ids:  # the tokenizer would take this for an empty batch
            return {"role": "assistant", "content": ""}
        with self._lock:
            parsed = self._tokenizer.parse_response(list(ids), prefix=list(prompt))
        if not isinstance(parsed, Mapping):
            raise SettingsError(f"`response_template` must give a mapping, got {type(parsed).__name__}; correct it")
        return dict(parsed)

    def json(self, schema: Mapping[str, object], *, optional: bool = False) -> JsonSchema | JsonOrText:
        """A processor for one answer, which may also be text if JSON is `optional`. Raises as `JsonSchema`."""
        from memograft.decoding.json_or_text import JsonOrText
        from memograft.decoding.json_schema import JsonSchema

        if not self._eos:
            raise SettingsError(
                "`json_schema` needs a token that ends the answer, and neither model nor tokenizer names one; set "
                "`generation_config.eos_token_id` of the model"
            )
        with self._lock:
            return (JsonOrText if optional else JsonSchema)(self._vocabulary, schema)
