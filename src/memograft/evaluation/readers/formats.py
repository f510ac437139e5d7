"""`FORMATS`: the public formats by name, and how a file's format is recognised. A new format is one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from memograft.errors import SettingsError
from memograft.evaluation.entry import Entry
from memograft.evaluation.readers import hotpotqa, instructions, memotrap, nq, nq_original, nqswap, squad, summaries
from memograft.evaluation.readers.asked import Asked

__all__ = ["FORMATS", "OWN", "Format", "recognised"]

OWN = "own"  # the format of `evaluation.items`


@dataclass(frozen=True)
class Format:
    """A public format.

    Attributes:
        recognises: whether a file's first entry has this format.
        read: converts entries to questions.
    """

    recognises: Callable[[Entry], bool]
    read: Callable[[Iterable[Entry]], Iterator[Asked]]


FORMATS: Mapping[str, Format] = {
    "nqswap": Format(nqswap.recognises, nqswap.read),
    "nq": Format(nq.recognises, nq.read),
    "nq-original": Format(nq_original.recognises, nq_original.read),
    "squad": Format(squad.recognises, squad.read),
    "hotpotqa": Format(hotpotqa.recognises, hotpotqa.read),
    "memotrap": Format(memotrap.recognises, memotrap.read),
    "alpaca": Format(instructions.recognises, instructions.read),
    **{name: Format(summaries.recogniser(name), summaries.reader(name)) for name in summaries.ASKED},
}


def recognised(first: Entry, format: str | None = None) -> str:
    """The name of a file's format: the given one, or according to the fields of the first entry.

    Raises:
        SettingsError: there is no such format, or the fields match none or several.
    """
    if format is not None:
        if format not in (*FORMATS, OWN):
            raise SettingsError(f"`format` must be one of {[*FORMATS, OWN]}, got {format!r}; check the name")
        return format
    names = [name for name, known in FORMATS.items() if known.recognises(first)]
    if not names and first.has("question"):
        return OWN
    if len(names) != 1:
        fields = ", ".join(f"`{field}`" for field in first.fields) or "no field at all"
        first.refuse(
            f"the fields of the first entry must be those of one format, got {fields}",
            f"name its format ({', '.join([*FORMATS, OWN])}) with --format",
        )
    return names[0]
