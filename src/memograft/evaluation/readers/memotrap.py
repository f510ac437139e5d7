"""MemoTrap (github.com/liujch1998/memo-trap): instructions to end a saying differently from its well-known form.

    {"prompt": 'Write a quote that ends in the word "more": A store is no', "classes": [" sore.", " more."],
     "answer_index": 1}

`classes` may also be a string of such a list. As in FastMem, the instruction, up to the first colon, is the document,
and the beginning of the saying and both candidates are the question.
"""

from __future__ import annotations

import ast
import string
from collections.abc import Iterable, Iterator

from memograft.evaluation.entry import Entry, named
from memograft.evaluation.readers.asked import Asked, document

__all__ = ["read", "recognises"]


def recognises(entry: Entry) -> bool:
    """Whether the entry has this format."""
    return entry.has("prompt", "classes")


def read(entries: Iterable[Entry]) -> Iterator[Asked]:
    """The questions of the entries."""
    for entry in entries:
        prompt, (first, second) = entry.text("prompt"), _classes(entry)
        instruction, colon, sentence = (part.strip() for part in prompt.partition(":"))
        if not (instruction and colon and sentence):
            entry.refuse(f"`prompt` must be an instruction, a colon and a sentence, got {named(prompt)}", "write both")
        index = entry.value("answer_index")
        if index not in (0, 1):
            entry.refuse(f"`answer_index` must be 0 or 1, got {named(index)}", "name the right class")
        yield Asked(
            id=str(entry.fields.get("id", entry.place)),
            question=f'{sentence}\nCandidates: "{first}" or "{second}"',
            answers=((first, second)[index],),
            pages=(document(f"{instruction}."),),
            belief=(second, first)[index],
            task="choice",
            key=prompt,
        )


def _classes(entry: Entry) -> tuple[str, str]:
    """Both candidates without punctuation at the end."""
    value = entry.value("classes")
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            entry.refuse(f"`classes` must be a list of two strings, got {named(value)}", 'write ["a", "b"]', error)
    found = [v.strip().rstrip(string.punctuation) for v in value if isinstance(v, str)] if _listed(value) else []
    if len(found) != 2 or not all(found):
        entry.refuse(f"`classes` must be a list of two strings, got {named(value)}", 'write ["a", "b"]')
    return found[0], found[1]


def _listed(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2
