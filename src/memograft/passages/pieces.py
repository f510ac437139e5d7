"""Split text without blanks into overlapping pieces of characters, which are indexed instead of words.

    北京是首都  ->  北京 京是 是首 首都 都        a text: two characters each, and the last one
    首都在哪    ->  首都 都在 在哪                a question; if it is shorter than a piece, a prefix search

Pieces have two characters in Chinese, Japanese and Korean, whose words are short (as in Lucene's CJKBigramFilter;
Korean has blanks, but also endings), and three in Thai, Lao, Burmese and Khmer, whose letters are parts of syllables.
There is no dictionary, so pieces cross the ends of words; BM25 gives little weight to those that occur in many texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["PREFIX", "asked", "spaced", "without"]

PREFIX = "*"  # marks a question shorter than a piece, for a prefix search

_PAIRS = (
    "\u3005\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Hiragana, Katakana
    "\u3105-\u312f\u31a0-\u31bf\uac00-\ud7a3"  # Bopomofo, Hangul
)
_TRIPLES = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ebd\u0ec0-\u0ece\u0edc-\u0edf"  # Thai, Lao
    "\u1000-\u103f\u1050-\u108f\u109a-\u109d\u1780-\u17d3\u17d7\u17dc\u17dd"  # Burmese, Khmer
)
_RUN = re.compile(f"([{_PAIRS}]+)|[{_TRIPLES}]+")
# FTS5 ends words at vowels above or below a letter, so these scripts are mapped to the private use area.
_PRIVATE = {code: code - 0x0E00 + 0xE000 for code in range(0x0E00, 0x1800)}


def spaced(text: str) -> str:
    """The text for the index, with blanks around each piece of a run; the rest is unchanged."""
    if text.isascii():
        return text
    return _RUN.sub(lambda found: f" {' '.join(_pieces(found))} ", text)


def asked(text: str) -> list[str]:
    """The pieces of a question's runs. A text that contains a run also contains all its pieces in `spaced`."""
    return [piece for found in _RUN.finditer(text) for piece in _whole(found)]


def without(text: str) -> str:
    """The text with each run replaced by a blank."""
    return text if text.isascii() else _RUN.sub(" ", text)


def _pieces(found: re.Match[str]) -> Iterator[str]:
    run, size = _run(found)
    return (run[at : at + size] for at in range(len(run)))


def _whole(found: re.Match[str]) -> list[str]:
    run, size = _run(found)
    return [run[at : at + size] for at in range(len(run) - size + 1)] or [run + PREFIX]


def _run(found: re.Match[str]) -> tuple[str, int]:
    """(the run in its indexed form, characters per piece)."""
    return (found[0], 2) if found[1] else (found[0].translate(_PRIVATE), 3)
