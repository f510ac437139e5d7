"""Recover documents that a framework's template has put into a prompt, and the question beside them.

Left in the prompt, they would not be memorized, and relevance would be judged by the template's text too. This works on
the rendered text and the template's text with `{names}` in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from memograft.documents import Document

__all__ = ["Unstuffed", "fields_of", "split_context", "unstuffed"]

_NAME = re.compile(r"\{(\w+)\}")
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?\u2026\u3002\uff01\uff1f\"\u201d)])[ \t]*\n\s*")


@dataclass(frozen=True)
class Unstuffed:
    """The parts of a rendered template.

    Attributes:
        documents: of its context, in order.
        fields: the text of each other name, such as the question.
    """

    documents: tuple[Document, ...]
    fields: dict[str, str] = field(default_factory=dict)


def unstuffed(
    text: str, wordings: Sequence[str], *, context: str = "context", separator: str | None = None
) -> Unstuffed | None:
    """Recover the parts of a text that was rendered from one of some templates; None if it was not.

    Args:
        text: of one message.
        wordings: templates, tried in this order: "Use this context.\\n{context}\\n\\nQuestion: {question}".
        context: the name of the documents' field.
        separator: what the framework puts between two documents; None splits at blank lines.
    """
    for wording in wordings:
        fields = fields_of(text, wording)
        if fields is not None and context in fields:
            return Unstuffed(tuple(split_context(fields.pop(context), separator)), fields)
    return None


def split_context(context: str, separator: str | None = None, *, by_line: bool = False) -> list[Document]:
    """Split a joined context into documents.

    A document that contains the separator becomes several, which are judged and memorized separately.

    Args:
        context: joined texts.
        separator: between them; None for blank lines, which may contain spaces.
        by_line: the texts were joined by line breaks; a line without the end of a sentence continues in the next.
    """
    parts = _BLANK_LINES.split(context.strip()) if separator is None else context.split(separator)
    if by_line:
        parts = [line for part in parts for line in _SENTENCE_END.split(part)]
    return [Document(part.strip()) for part in parts if part.strip()]


def fields_of(text: str, wording: str) -> dict[str, str] | None:
    """The values that a template was filled with to give this text; None if the text does not match the template.

    Args:
        text: the whole text; blanks at its ends may be missing, because chat models strip messages.
        wording: the template, with `{names}`.
    """
    return _fields(text, wording) or _fields(text.strip(), wording.strip())


def _fields(text: str, wording: str) -> dict[str, str] | None:
    """`fields_of` for a text that was not stripped.

    Fields are located from the end: a document may contain the words that follow the context, but a question rarely
    does.
    """
    fixed, names = _NAME.split(wording)[::2], _NAME.findall(wording)
    if not names or not text.startswith(fixed[0]) or not text.endswith(fixed[-1]):
        return None
    start, end = len(fixed[0]), len(text) - len(fixed[-1])
    fields: dict[str, str] = {}
    for name, before in zip(reversed(names), reversed(fixed[:-1]), strict=True):
        first = name == names[0] and len(fields) == len(names) - 1
        at = start if first else text.rfind(before, start, end) + len(before)
        if not first and at < start + len(before):
            return None
        if at > end or fields.get(name, text[at:end]) != text[at:end]:
            return None
        fields[name] = text[at:end]
        end = at - len(before)
    return dict(reversed(fields.items()))
