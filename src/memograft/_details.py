"""What an answer says of its tokens beside their text, from the row that said them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memograft.decode import Row
from memograft.request import Reference, TokenLogprob, TokenReferences

__all__ = ["logprobs", "references"]

Pieces = Callable[[Sequence[int]], list[str]]


def logprobs(row: Row, pieces: Pieces) -> tuple[TokenLogprob, ...]:
    """How sure the model was of each token; nothing where that was not asked for."""

    def text(token: int) -> str:
        return pieces([token])[0]

    return tuple(
        TokenLogprob(token, text(token), chance, tuple((t, text(t), p) for t, p in likeliest.items()))
        for token, (chance, likeliest) in zip(row.tokens, row.chances, strict=False)
    )


def references(row: Row, pieces: Pieces) -> tuple[TokenReferences, ...]:
    """What moved each token, with the sources looked up; nothing without a batch processor."""
    if row.batch is None:
        return ()
    moved = row.moved()[: len(row.tokens)]
    sources = {number: row.batch.source(number) for number in {n for entries in moved for n, _, _ in entries}}
    return tuple(
        TokenReferences(token, text, tuple(Reference(sources[n], position, p) for n, position, p in entries))
        for token, text, entries in zip(row.tokens, pieces(row.tokens), moved, strict=True)
    )
