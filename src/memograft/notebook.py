"""HTML with which notebooks show answers and reports: escaped, without scripts, and in the notebook's own colours.

Only plain data is taken, because this module is below the classes that use it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["answer_html", "table_html"]

_STRONGEST = 0.6  # opacity behind a token of probability 0
_LONGEST = 160  # characters of a source
_CELL = "text-align:left;vertical-align:top;padding:.15em .8em .15em 0"


def table_html(rows: Iterable[tuple[str, str]]) -> str:
    """A table with a name and a value in each row."""
    cells = "".join(
        f'<tr><th style="{_CELL}">{escape(name)}</th><td style="{_CELL}">{escape(value)}</td></tr>'
        for name, value in rows
    )
    return f'<table style="font-size:.9em">{cells}</table>'


def answer_html(
    text: str, tokens: Sequence[tuple[str, float]], report: str, sources: Sequence[tuple[str, float]]
) -> str:
    """An answer, what memorizing did, and the sources of a datastore.

    Args:
        text: the answer.
        tokens: (text, logprob) of its tokens, which shade improbable ones; may be empty.
        report: HTML of the memory report, or "".
        sources: (text, summed probability) of each source, highest first.
    """
    # A stop string or an end token may be part of the tokens and not of the answer; then only the answer is certain.
    shaded = "".join(piece for piece, _ in tokens).startswith(text)
    said = "".join(_shaded(text, tokens)) if tokens and shaded else escape(text)
    listed = [(f"{moved:.2f}", _shortened(source)) for source, moved in sources]
    table = f"<small>probability from sources of the datastore, summed over tokens</small>{table_html(listed)}"
    return f'<div style="white-space:pre-wrap">{said}</div>{report}{table if listed else ""}'


def _shaded(text: str, tokens: Sequence[tuple[str, float]]) -> Iterable[str]:
    start = 0
    for token, logprob in tokens:
        piece = text[start : start + len(token)]
        start += len(token)
        if piece:
            probability = math.exp(min(logprob, 0.0))
            opacity = _STRONGEST * (1 - probability)
            style = f"background:rgb(255 140 0 / {opacity:.2f})"
            yield f'<span style="{style}" title="probability {probability:.3f}">{escape(piece)}</span>'


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
