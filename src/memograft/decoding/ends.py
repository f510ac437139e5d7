"""When an answer ends: end tokens, stop strings, lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from memograft.decoding.row import Row
from memograft.model.backbone import Backbone

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

__all__ = ["Ends", "end_tokens"]


def end_tokens(backbone: Backbone, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens that end an answer: the model's, or else the tokenizer's; empty if neither has any."""
    config: GenerationConfig = backbone.model.generation_config
    eos = config.eos_token_id
    eos = eos if eos is not None else tokenizer.eos_token_id
    return list(eos) if isinstance(eos, list | tuple) else [] if eos is None else [int(eos)]


class Ends:
    """Adds new tokens to rows and decides whether they are done.

    Stop strings are searched for in the decoded text. transformers' own criterion processes the whole vocabulary for
    each request, and misses strings whose characters are split over tokens.
    """

    def __init__(self, backbone: Backbone, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._eos = tokenizer, frozenset(end_tokens(backbone, tokenizer))
        stops: str | Sequence[str] = backbone.model.generation_config.stop_strings or ()
        self._stops = (stops,) if isinstance(stops, str) else tuple(stops)

    def take(self, row: Row, token: int) -> None:
        """Add a token to a row, and set its `finish_reason` if it ends here."""
        row.finish_reason = self._reason(row, token)
        if row.on_tokens is not None and not row.finish_reason:
            try:
                row.on_tokens(row.tokens)
            except Exception as e:  # an error in the callback ends only this row
                row.error = e

    def _reason(self, row: Row, token: int) -> Literal["", "stop", "length"]:
        if token in self._eos:
            del row.chances[len(row.tokens) :]
            return "stop"
        row.tokens.append(token)
        if self._found(row):
            return "stop"
        return "length" if len(row.tokens) >= row.max_new_tokens else ""

    def _found(self, row: Row) -> bool:
        stops = (*row.sampling.stop, *self._stops)
        if not stops:
            return False
        # A stop string of n bytes that ends in the last token is within the last n tokens, special tokens not counted.
        tail = row.tokens[-8 - 2 * max(len(s.encode("utf-8", "replace")) for s in stops) :]
        decode = self._tokenizer.decode
        texts = [decode(tail, skip_special_tokens=skip, clean_up_tokenization_spaces=False) for skip in (True, False)]
        return any(stop in text for stop in stops for text in texts)
