"""Determine which of a tokenizer's tokens are control tokens."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

from memograft.errors import SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Fragments", "control_tokens", "lead"]

_MARKUP = re.compile(r"[<\[{|\uff1c].+[>\]}|\uff1e]")


def control_tokens(tokenizer: PreTrainedTokenizerBase, template: str) -> dict[str, int]:
    """Text -> id of every control token.

    These are the special tokens, and those added tokens that occur in the chat template or look like markup (Qwen's
    <tool_call>). Other added tokens are text: runs of spaces (GPT-NeoX), or domain terms.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise SettingsError(
            f"the tokenizer must report character offsets (a fast tokenizer), got "
            f"{type(tokenizer).__name__}; load it with AutoTokenizer.from_pretrained(..., use_fast=True)"
        )
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    added = {
        str(t.content): id
        for id, t in tokenizer.added_tokens_decoder.items()
        if t.special or t.content in template or _MARKUP.fullmatch(t.content)
    }
    return {token: id for token, id in (special | added).items() if token.strip(" \t\r\n\u2581")}


class Fragments:
    """Parts of control tokens. Widths and cases are folded, as a tokenizer's normaliser may do."""

    def __init__(self, tokens: Iterable[str]) -> None:
        folded = [_folded(token) for token in tokens]
        self._tokens = "\n".join(folded)
        self._starts = {token[:n] for token in folded for n in range(1, len(token))}
        self._ends = {token[-n:] for token in folded for n in range(1, len(token))}
        self._longest = max(map(len, folded), default=0)

    def include(self, text: str) -> bool:
        """Whether a text could become part of a control token together with adjacent text."""
        text = _folded(text)
        lengths = range(1, min(self._longest, len(text) + 1))
        joins = any(text[:n] in self._ends or text[-n:] in self._starts for n in lengths)
        return bool(text) and (joins or text in self._tokens)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().strip()


def lead(tokenizer: PreTrainedTokenizerBase) -> str:
    """A control token to put before a piece of text: one that does not change the space after it."""
    tokens = tokenizer.added_tokens_decoder.values()
    return next((str(t.content) for t in tokens if t.special and not t.rstrip and not t.single_word), "")
