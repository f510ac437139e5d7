"""Instructions with an input, in the format of Alpaca: {"instruction", "input", "output"}.

Alpaca+ (arXiv 2304.08467) and many sets of the hub have it. As in Gisting, the instruction is what is memorized: it is
the document, and the input is the question. Entries without an input are left out. Answers are scored like summaries;
split and order are determined by the instruction and its input.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from memograft.evaluation.entry import Entry
from memograft.evaluation.readers.asked import Asked, document

__all__ = ["read", "recognises"]

_FIELDS = ("instruction", "input", "output")


def recognises(entry: Entry) -> bool:
    """Whether the entry has this format."""
    return entry.has(*_FIELDS)


def read(entries: Iterable[Entry]) -> Iterator[Asked]:
    """The questions of the entries."""
    for entry in entries:
        instruction, given, output = (entry.text(name, default="").strip() for name in _FIELDS)
        yield Asked(
            id=str(entry.fields.get("id", entry.place)),
            question=given,
            answers=(output,),
            pages=(document(instruction),),
            task="summary",
            key=f"{instruction}\n{given}",
            skip="" if instruction and given and output else "no instruction, no input or no output is given",
        )
