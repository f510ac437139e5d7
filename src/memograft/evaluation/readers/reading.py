"""`read`: a file of a public set, or one's own, as items in the contexts and of the split that are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from memograft.errors import SettingsError
from memograft.evaluation.files import records
from memograft.evaluation.items import SPLITS, Item, own_item, sets_of
from memograft.evaluation.protocol import Protocol, protocol_of
from memograft.evaluation.readers import nqswap, squad
from memograft.evaluation.readers.asked import Asked
from memograft.evaluation.readers.contexts import CONTEXTS, Unfit, fits, item
from memograft.evaluation.readers.pages import Pages
from memograft.evaluation.record import Record
from memograft.evaluation.split import split_of, squeezed

__all__ = ["FORMATS", "OWN", "Reading", "read"]

OWN = "own"  # the format of `items`, with documents and answers in each line
ANOTHER_SWAP = "another swap of a question that is asked already"


@dataclass(frozen=True)
class Format:
    """A public format: whether a file's first record is of it, and the questions of its records."""

    recognises: Callable[[Record], bool]
    read: Callable[[Iterable[Record]], Iterator[Asked]]


FORMATS: Mapping[str, Format] = {
    "nqswap": Format(nqswap.recognises, nqswap.read),
    "squad": Format(squad.recognises, squad.read),
}


@dataclass(frozen=True)
class Reading:
    """What was read.

    Attributes:
        items: the questions, set by set.
        skipped: how many questions of the split were left out, by reason.
        format: of the file.
    """

    items: list[Item]
    skipped: Mapping[str, int]
    format: str


def read(
    path: str | Path,
    *,
    format: str | None = None,
    contexts: Sequence[str] | None = None,
    split: str | None = None,
    n: int | None = None,
    protocol: str = "plain",
    every_swap: bool = False,
) -> Reading:
    """The questions of a file as items; the order and all that is chosen hang on hashes of the questions.

    Args:
        path: a .json or .jsonl file, which may be packed (.gz, .xz).
        format: one of `FORMATS`, or "own"; left out, what the fields of the first record say.
        contexts: what stands in the prompt, names of `CONTEXTS`, each of which is a set; left out, all that the format
            can make. One's own file has sets of its own.
        split: "test", "tune" or "all" of the questions; left out, "test", and all of one's own file.
        n: of each set, the first n; left out, all.
        protocol: how the question is put and the answer read, one of `PROTOCOLS`.
        every_swap: ask all swaps of a question (NQ-SWAP) instead of one.

    Raises:
        SettingsError: the file is missing, damaged, or not of the format; a context cannot be made of it; an argument
            is not one of its words; nothing is left to ask.
    """
    if split not in (None, "all", *SPLITS):
        raise SettingsError(f"`split` must be one of {(*SPLITS, 'all')}, got {split!r}")
    found, name, way = *_recognised(records(path), str(path), format), protocol_of(protocol)
    if name == OWN:
        return _own(found, str(path), contexts, split, n, way)
    asked = [a for a in FORMATS[name].read(found) if split == "all" or split_of(a.asks) == (split or "test")]
    skipped = Counter(a.skip for a in asked if a.skip)
    asked = sorted((a for a in asked if not a.skip), key=lambda a: a.order)
    swaps = asked if every_swap else _one_of_each(asked)
    skipped[ANOTHER_SWAP] += sum(1 for a in asked if a.swapped) - sum(1 for a in swaps if a.swapped)
    singles, pages = _one_of_each(asked), Pages(asked)
    made: list[Item] = []
    for context in _contexts(contexts, asked, str(path), name):
        chosen = swaps if context in _OF_SWAPS else singles
        made += islice(_items(chosen, context, pages, way, skipped), n)
    if not made:
        raise SettingsError(
            f"{path} must hold a question to ask, got none in the split {split or 'test'!r} "
            f"({dict(+skipped) or 'it is empty'}); take --split all, or another file"
        )
    return Reading(made, dict(+skipped), name)


_OF_SWAPS = ("contradicts", "one of five", "disagree")


def _items(asked: Sequence[Asked], context: str, pages: Pages, way: Protocol, skipped: Counter[str]) -> Iterator[Item]:
    for question in asked:
        try:
            yield item(question, context, pages, way)
        except Unfit as why:
            skipped[f"{context}: {why}"] += 1


def _one_of_each(asked: Sequence[Asked]) -> list[Asked]:
    """Without all swaps of a question but the first; questions without swaps all stay."""
    seen: set[str] = set()
    return [a for a in asked if not a.swapped or not (squeezed(a.asks) in seen or seen.add(squeezed(a.asks)))]


def _recognised(found: Iterator[Record], path: str, format: str | None) -> tuple[Iterator[Record], str]:
    """All records again, and the name of their format."""
    first = next(found, None)
    if first is None:
        raise SettingsError(f"{path} must hold at least one question, got an empty file; write one JSON object a line")
    again = chain([first], found)
    if format is not None:
        if format not in (*FORMATS, OWN):
            raise SettingsError(f"`format` must be one of {[*FORMATS, OWN]}, got {format!r}; check the name")
        return again, format
    names = [name for name, known in FORMATS.items() if known.recognises(first)]
    if not names and first.has("question"):
        names = [OWN]
    if len(names) != 1:
        fields = ", ".join(f"`{field}`" for field in first.fields) or "no field at all"
        first.refuse(
            f"the fields of the first record must be those of one format, got {fields}",
            f"name the format with --format, one of {', '.join([*FORMATS, OWN])}",
        )
    return again, names[0]


def _contexts(wanted: Sequence[str] | None, asked: Sequence[Asked], path: str, format: str) -> list[str]:
    """The contexts that were asked for, or all that this file can make."""
    possible = [name for name in CONTEXTS if any(fits(a, name) for a in asked)]
    for name in wanted or ():
        if name not in CONTEXTS:
            raise SettingsError(f"`context` must be one of {list(CONTEXTS)}, got {name!r}; check the name")
        if asked and name not in possible:
            raise SettingsError(f"`context` of {path} ({format}) must be one of {possible}, got {name!r}; leave it out")
    return [name for name in CONTEXTS if name in (wanted or possible)]


def _own(
    found: Iterator[Record], path: str, contexts: Sequence[str] | None, split: str | None, n: int | None, way: Protocol
) -> Reading:
    """One's own file: in its own order and, unless a split is asked for, whole."""
    if contexts:
        raise SettingsError(
            f"`context` is for public sets, got {list(contexts)} for {path}, which says itself what stands in the "
            "prompt; leave it out"
        )
    items = [own_item(record) for record in found]
    kept = [i for i in items if split in (None, "all") or split_of(i.query or i.question) == split]
    if not kept:
        raise SettingsError(f"{path} must hold a question to ask, got none in the split {split!r}; take --split all")
    kept = [i for name in sets_of(kept) for i in [i for i in kept if i.set == name][:n]]
    return Reading([_put(i, way) for i in kept], {}, OWN)


def _put(item: Item, way: Protocol) -> Item:
    query = item.query or item.question
    return replace(item, question=way.wrap(item.question, item.task), query=query, protocol=way.name)
