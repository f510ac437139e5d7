"""One HTML page that shows what memorizing did: each context token, shaded by its surprise before and after.

Everything is in the one file, styles included; nothing is loaded from anywhere, and every text is escaped.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memograft.errors import MissingExtraError, SettingsError

if TYPE_CHECKING:
    from memograft.memory.report import MemoryReport

__all__ = ["LEVELS", "Card", "Reply", "Retrieved", "Token", "level", "render", "tokens_of", "write"]

LEVELS = (0.05, 0.25, 0.5, 1.0, 2.0, 3.0, 4.5, 6.0, 8.0)  # nats; between them lie the ten shades


@dataclass(frozen=True)
class Token:
    """A piece of context with its cross-entropy in nats before and after.

    `number` is its document's among those that were memorized, from 0.
    """

    text: str
    before: float
    after: float
    number: int = 0


@dataclass(frozen=True)
class Reply:
    """One way's answer, and whether it gives the document's value."""

    way: str
    text: str
    right: bool


@dataclass(frozen=True)
class Retrieved:
    """A document of the prompt: whether it was memorized, and that in words, with why not."""

    title: str
    text: str
    memorized: bool
    said: str


@dataclass(frozen=True)
class Card:
    """A question with its answers and its context tokens."""

    question: str
    kind: str
    expected: str
    documents: tuple[Retrieved, ...]
    answers: tuple[Reply, ...]
    changed: bool
    spoiled: bool
    loss_before: float
    loss_after: float
    seconds: float
    note: str
    tokens: tuple[Token, ...]


def level(loss: float) -> int:
    """Shade of a loss, 0 (expected) to 9 (more than 8 nats); what is not a number counts as most surprising.

    Example:
        >>> level(0.01), level(0.7), level(12.0)
        (0, 3, 9)
    """
    return len(LEVELS) if loss != loss else bisect_right(LEVELS, loss)


def tokens_of(tokenizer: Any, report: MemoryReport, texts: Sequence[str]) -> tuple[Token, ...]:
    """The report's tokens as text; `texts` are those of the documents memorized, in order.

    Tokens that are only part of a character are shown together, with the sum of their losses.
    """
    made: list[Token] = []
    last: list[int] = []  # the tokens of the piece before: some tokenizers drop the space of the first one they decode
    group: list[int] = []
    before = after = 0.0
    number, so_far = 0, ""
    losses = zip(report.tokens, report.token_losses_before, report.token_losses_after, strict=True)
    for token, loss_before, loss_after in losses:
        group.append(token)
        before, after = before + loss_before, after + loss_after
        text = _decoded(tokenizer, last, group)
        if text.endswith("\ufffd") and len(group) < 4:
            continue
        made.append(Token(text, before, after, number))
        last, group, before, after = group, [], 0.0, 0.0
        so_far += text
        if number + 1 < len(texts) and len(so_far.strip()) >= len(texts[number].strip()):
            number, so_far = number + 1, ""
    if group:
        made.append(Token(_decoded(tokenizer, last, group), before, after, number))
    return tuple(made)


def _decoded(tokenizer: Any, last: list[int], group: list[int]) -> str:
    lead, whole = (str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)) for ids in (last, last + group))
    if whole.startswith(lead):
        return whole[len(lead) :]
    return str(tokenizer.decode(group, clean_up_tokenization_spaces=False))


def render(cards: Sequence[Card], counts: Mapping[str, Any], *, model: str) -> str:
    """The page as text; cards that changed come first, then those that went the other way.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtraError(
            'the HTML page needs jinja2, which is not installed; run pip install "memograft[cli]"'
        ) from error
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"level": level, "lines": _lines}
    source = (files("memograft") / "templates/demo.html.jinja").read_text(encoding="utf-8")
    ordered = sorted(cards, key=lambda card: (not card.changed, not card.spoiled))
    return environment.from_string(source).render(
        cards=ordered, counts=counts, model=Path(model).name or model, levels=LEVELS
    )


def _lines(text: str) -> str:
    """Without empty lines, which only make the page longer."""
    return re.sub(r"\n+", "\n", text)


def write(path: Path, html: str) -> None:
    """Write the page whole or not at all.

    Raises:
        SettingsError: it cannot be written there.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8", errors="replace") as file:
            file.write(html)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise SettingsError(f"{path} cannot be written ({error.strerror or error}); name another file") from error
