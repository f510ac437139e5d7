"""Fallback: decode the base model's answer beside the memorized one, and use it if only the memorized one fails.

Both rows share the same keys and values, which memories do not change. So this costs one row of the batch and no
prefill.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from memograft.decoding.repetition import repeats
from memograft.decoding.row import Row

__all__ = ["base_answer"]

# Length limit of the memorized answer once the base model's has ended: this many times its length, plus this many
# tokens.
_TIMES, _MORE = 4, 64

Decode = Callable[[Sequence[int]], str]
Finish = Callable[[Row, str | None], None]


def base_answer(row: Row, decode: Decode, finish: Finish) -> Row:
    """Make the row of the base model's answer to the same request. Exactly one of the two rows is passed to `finish`.

    Args:
        row: the row with an adapter; its `on_end` is set here.
        decode: token ids -> text.
        finish: called once, with the chosen row, and with the reason if that is the base model's.
    """
    plain = replace(row, adapter=None, rules=(), on_tokens=None, tokens=[], chances=[], moved=[])
    settled = False

    def settle(chosen: Row, reason: str | None = None) -> None:
        nonlocal settled
        settled = True
        finish(chosen, reason)

    def fault(of: Row) -> str | None:
        if of.finish_reason == "length":
            return f"did not end within {len(of.tokens)} tokens"
        return "repeated itself" if repeats(decode(of.tokens)) else None

    def decide() -> None:
        wrong = fault(row)
        assert wrong is not None
        if plain.error is None and fault(plain) is None:
            settle(plain, f"the memorized answer {wrong}, so the base model's was given; try a smaller `target_kl`")
        else:
            settle(row)

    def row_ended(_: Row) -> None:
        if settled:
            return
        if row.error is not None or fault(row) is None:
            settle(row)
        elif plain.done:
            decide()

    def plain_ended(_: Row) -> None:
        if settled:
            return
        if row.done:  # perhaps in the same step, and its `on_end` follows
            row_ended(row)
        elif plain.error is None and fault(plain) is None:
            row.max_new_tokens = min(row.max_new_tokens, _TIMES * len(plain.tokens) + _MORE)

    row.on_end, plain.on_end = row_ended, plain_ended
    plain.given_up = lambda: settled or row.given_up()
    return plain
