"""What an answer says of its tokens beside their text, from the row that said them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memograft.decode import Row
from memograft.request import Reference, TokenLogprob, TokenReferences

__all__ = ["logprobs", "references"]

Pieces = Callable[[Sequence[int]], list[str]]
Decode = Callable[[Sequence[int]], str]

_HALF = "\ufffd"  # what the first bytes of an unfinished character are decoded to
_LEAD = 16  # tokens before a token that say how it is written: with a space in front, or as the rest of a character


def logprobs(row: Row, pieces: Pieces) -> tuple[TokenLogprob, ...]:
    """How sure the model was of each token; nothing where that was not asked for."""

    def text(token: int) -> str:
        return pieces([token])[0]

    return tuple(
        TokenLogprob(token, text(token), chance, tuple((t, text(t), p) for t, p in likeliest.items()))
        for token, (chance, likeliest) in zip(row.tokens, row.chances, strict=False)
    )


def references(row: Row, pieces: Pieces, decode: Decode, text: str) -> tuple[TokenReferences, ...]:
    """What moved each token, with the sources looked up; nothing without a batch processor.

    Args:
        row: a row that has ended.
        pieces: token ids -> the text of each.
        decode: token ids -> their text.
        text: the answer's, which a stop string may have cut.
    """
    if row.batch is None:
        return ()
    moved = row.moved()[: len(row.tokens)]
    sources = {number: row.batch.source(number) for number in {n for entries in moved for n, _, _ in entries}}
    ends = [min(end, len(text)) for end in _ends(row.tokens, decode)]
    return tuple(
        TokenReferences(token, piece, tuple(Reference(sources[n], at, p) for n, at, p in entries), start, end)
        for token, piece, entries, start, end in zip(
            row.tokens, pieces(row.tokens), moved, [0, *ends], ends, strict=False
        )
    )


def _ends(tokens: Sequence[int], decode: Decode) -> list[int]:
    """Where in the text of all tokens each one ends."""
    ends, end = [], 0
    for n in range(len(tokens)):
        lead, whole = (decode(tokens[max(0, n - _LEAD) : to]).rstrip(_HALF) for to in (n, n + 1))
        end += len(whole) - len(lead)
        ends.append(end)
    return ends
