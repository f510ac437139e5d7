"""HTML pages that show what memorizing did to a context, and a datastore to an answer.

A page is one file with its styles, without scripts and external resources. All texts are escaped.
"""

from __future__ import annotations

from memograft.page.colors import LEVELS, level
from memograft.page.demo import Card, Reply, demo_page
from memograft.page.memorized import Retrieved, Token, tokens_of
from memograft.page.question import Memorized, Way, question_page
from memograft.page.references import References, references_html, references_of
from memograft.page.template import check, write

__all__ = [
    "LEVELS",
    "Card",
    "Memorized",
    "References",
    "Reply",
    "Retrieved",
    "Token",
    "Way",
    "check",
    "demo_page",
    "level",
    "question_page",
    "references_html",
    "references_of",
    "tokens_of",
    "write",
]
