"""Score one answer: whether it contains the value, and problems that this does not show.

A model that loops or recites its document may contain the value too. So answers are also compared with the whole gold
answer (`exact_match`, `f1`, `rouge_l`), and tested for recitation (`recites`) and for repetition
(`memograft.decoding.repetition`).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import TYPE_CHECKING

from memograft.errors import MissingExtraError
from memograft.prompt.words import words_of

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

__all__ = ["check_rouge", "exact_match", "f1", "holds", "normalised", "recites", "rouge_l", "says"]


def says(text: str, value: str, ignore_case: bool = False) -> bool:
    """Whether the text contains the value as whole words.

    >>> says("The capital is New Delhi.", "New Delhi"), says("Mayan", "May"), says("paris", "Paris", ignore_case=True)
    (True, False, True)
    """
    flags = re.IGNORECASE if ignore_case else 0
    return bool(value) and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, flags) is not None


def normalised(text: str) -> str:
    """Normalise as SQuAD's script does: lower case, no punctuation and articles, one space between words.

    >>> normalised("The  U.S. Navy, an armed force")
    'us navy armed force'
    """
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def holds(text: str, value: str) -> bool:
    """Whether the normalised text contains the normalised value, even within a word.

    >>> holds("Some 1,000 Romans", "The 1000 roman")
    True
    """
    return normalised(value) != "" and normalised(value) in normalised(text)


def exact_match(text: str, answers: Sequence[str]) -> bool:
    """Whether the normalised text is one of the normalised answers."""
    return normalised(text) in map(normalised, answers)


def f1(text: str, answers: Sequence[str]) -> float:
    """SQuAD's F1 over the words of the normalised texts, 0 to 1; the maximum over the answers.

    >>> f1("It is the city of Rome", ["Rome", "Rome city"])
    0.5714285714285714
    """
    return max(_f1(normalised(text).split(), normalised(answer).split()) for answer in answers)


def recites(text: str, documents: Sequence[str]) -> int:
    """Length in words of the longest run of words that text and any document share; case is ignored.

    >>> recites("E7 means that the pump is blocked.", ["The pump is blocked. Rinse it."])
    4
    """
    words = words_of(text)
    matchers = (SequenceMatcher(None, words, words_of(document), autojunk=False) for document in documents)
    return max((matcher.find_longest_match().size for matcher in matchers), default=0)


def rouge_l(text: str, summaries: Sequence[str]) -> float:
    """ROUGE-L (F-measure, stemmed words) with the library rouge-score, 0 to 1; the maximum over the summaries.

    Raises:
        MissingExtraError: rouge-score is not installed.
    """
    return float(_scorer().score_multi(list(summaries), text)["rougeL"].fmeasure)


def check_rouge() -> None:
    """Check before a run that summaries can be scored.

    Raises:
        MissingExtraError: rouge-score is not installed.
    """
    _scorer()


@cache
def _scorer() -> RougeScorer:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingExtraError(
            'summaries are scored by rouge-score, which is not installed; run pip install "memograft[eval]"'
        ) from error
    return RougeScorer(["rougeL"], use_stemmer=True)


def _f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    if not said or not wanted:  # as the script does for questions without an answer
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))
