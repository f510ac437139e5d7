"""`Protocol`: how a question is put to the model and how an answer is read out of what it says.

"plain" asks the bare question and reads the whole text. "paper" is FastMem's (arXiv 2406.16069): the model is told to
answer in the form "The answer is: ...", and what does not hold these words is a failure of the output structure, which
counts as wrong. Two things stay ours: documents stand where every method puts them, and what is memorized, and how, is
said by the method, of which the paper's recipe is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memograft.errors import SettingsError

if TYPE_CHECKING:
    from memograft.evaluation.items import Task

__all__ = ["PROTOCOLS", "Protocol", "protocol_of"]

_FORM = 'and provide the answer in the following format: "The answer is: ...".'
_PAPER: Mapping[str, str] = {
    "qa": f"Please extract from the context the span that best answers the question {_FORM}\nQuestion: ",
    "choice": f"Please choose the candidate that best fits the instructions {_FORM}\nSentence: ",
}
_PLAIN: Mapping[str, str] = {"choice": "Which candidate completes the sentence as instructed?\nSentence: "}
_MARK = re.compile(r"the answer is:\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Protocol:
    """One way to ask and to read answers.

    Attributes:
        name: what `Item.protocol` and `--protocol` call it.
        before: what the model is told before the question, by the item's task.
        new_tokens: of an answer at most, by the item's task.
        read: by the item's task, finds the answer in a text, or None where its form is wrong; tasks that are not named
            take the whole text.
    """

    name: str
    before: Mapping[str, str]
    new_tokens: Mapping[str, int]
    read: Mapping[str, Callable[[str], str | None]]

    def wrap(self, question: str, task: Task = "qa") -> str:
        """The question as the model is asked it; it holds the question as it is."""
        return self.before.get(task, "") + question

    def extract(self, text: str, task: Task = "qa") -> str | None:
        """The answer in what the model said; None if it is not in the form that was asked for."""
        return self.read[task](text) if task in self.read else text

    def max_new_tokens(self, task: Task = "qa") -> int:
        """How long an answer may be."""
        return self.new_tokens[task]


def protocol_of(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        SettingsError: there is none.
    """
    if name not in PROTOCOLS:
        raise SettingsError(f"`protocol` must be one of {list(PROTOCOLS)}, got {name!r}; check the name")
    return PROTOCOLS[name]


def _after_mark(text: str) -> str | None:
    """What follows the last "The answer is:"."""
    said = _MARK.split(text)
    return said[-1].strip() if len(said) > 1 else None


PROTOCOLS: Mapping[str, Protocol] = {
    "plain": Protocol("plain", _PLAIN, {"qa": 40, "choice": 40, "summary": 200}, {}),
    "paper": Protocol(
        "paper", _PAPER, {"qa": 100, "choice": 100, "summary": 400}, {"qa": _after_mark, "choice": _after_mark}
    ),
}
