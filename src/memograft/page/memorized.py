"""What memorizing did to a context: losses of its tokens before and after, and which documents were left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memograft.memory.report import MemoryReport

__all__ = ["Retrieved", "Token", "tokens_of"]

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Token:
    """A piece of context with its cross-entropy in nats before and after memorizing.

    `number` is the index of its document among those that were memorized.
    """

    text: str
    before: float
    after: float
    number: int = 0


@dataclass(frozen=True)
class Retrieved:
    """A document of the prompt. `said` states in words whether it was memorized, and if not why."""

    title: str
    text: str
    memorized: bool
    said: str


def tokens_of(decode: Decode, report: MemoryReport, texts: Sequence[str]) -> tuple[Token, ...]:
    """The report's tokens as text, with `Engine.decode`; `texts` are those of the memorized documents, in order.

    Tokens that are parts of one character are joined, and their losses added.
    """
    made: list[Token] = []
    last: list[int] = []  # the previous piece, because some tokenizers drop the first token's space
    group: list[int] = []
    before = after = 0.0
    number, so_far = 0, ""
    losses = zip(report.tokens, report.token_losses_before, report.token_losses_after, strict=True)
    for token, loss_before, loss_after in losses:
        group.append(token)
        before, after = before + loss_before, after + loss_after
        text = _decoded(decode, last, group)
        if text.endswith("\ufffd") and len(group) < 4:
            continue
        made.append(Token(text, before, after, number))
        last, group, before, after = group, [], 0.0, 0.0
        so_far += text
        if number + 1 < len(texts) and len(so_far.strip()) >= len(texts[number].strip()):
            number, so_far = number + 1, ""
    if group:
        made.append(Token(_decoded(decode, last, group), before, after, number))
    return tuple(made)


def _decoded(decode: Decode, last: list[int], group: list[int]) -> str:
    lead, whole = decode(last), decode(last + group)
    return whole[len(lead) :] if whole.startswith(lead) else decode(group)
