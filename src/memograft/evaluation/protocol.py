"""`Protocol`: how the model is asked a question, and how its answer is extracted from the text.

"plain" asks the question alone and uses the whole text. "paper" is FastMem's protocol (arXiv 2406.16069): the model is
told to answer in the form "The answer is: ...", and an answer without these words is malformed and counts as wrong. Two
things differ from the paper: documents are where all methods have them, and the method, not the protocol, decides what
is memorized and how.
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
    """How to ask, and how to extract answers.

    Attributes:
        name: value of `Item.protocol` and `--protocol`.
        before: text before the question, by task.
        new_tokens: maximum length of an answer, by task.
        read: extracts the answer from a text, or None if its form is wrong; by task. Other tasks use the whole text.
    """

    name: str
    before: Mapping[str, str]
    new_tokens: Mapping[str, int]
    read: Mapping[str, Callable[[str], str | None]]

    def wrap(self, question: str, task: Task = "qa") -> str:
        """The question as the model is asked it; it contains the original question."""
        return self.before.get(task, "") + question

    def extract(self, text: str, task: Task = "qa") -> str | None:
        """The answer in the model's text; None if it does not have the required form."""
        return self.read[task](text) if task in self.read else text

    def max_new_tokens(self, task: Task = "qa") -> int:
        """Maximum length of an answer."""
        return self.new_tokens[task]


def protocol_of(name: str) -> Protocol:
    """The protocol with that name.

    Raises:
        SettingsError: there is none.
    """
    if name not in PROTOCOLS:
        raise SettingsError(f"`protocol` must be one of {list(PROTOCOLS)}, got {name!r}; check the name")
    return PROTOCOLS[name]


def _after_mark(text: str) -> str | None:
    """The text after the last "The answer is:"."""
    said = _MARK.split(text)
    return said[-1].strip() if len(said) > 1 else None


PROTOCOLS: Mapping[str, Protocol] = {
    "plain": Protocol("plain", _PLAIN, {"qa": 40, "choice": 40, "summary": 200}, {}),
    "paper": Protocol(
        "paper", _PAPER, {"qa": 100, "choice": 100, "summary": 400}, {"qa": _after_mark, "choice": _after_mark}
    ),
}
