"""`read`: convert a public set, or a file of your own, to items in the requested contexts and split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from memograft.errors import SettingsError
from memograft.evaluation.entry import Entry
from memograft.evaluation.files import entries
from memograft.evaluation.hub import from_hub, is_hub_id
from memograft.evaluation.items import SPLITS, Item, own_item, sets_of
from memograft.evaluation.protocol import Protocol, protocol_of
from memograft.evaluation.readers.asked import Asked
from memograft.evaluation.readers.contexts import CONTEXTS, SWAPPED, Unfit, fits, item
from memograft.evaluation.readers.formats import FORMATS, OWN, recognised
from memograft.evaluation.readers.pages import Pages
from memograft.evaluation.split import split_of

__all__ = ["ANOTHER_SWAP", "Reading", "read"]

ANOTHER_SWAP = "another swap of a question that is asked already"


@dataclass(frozen=True)
class Reading:
    """The result of `read`.

    Attributes:
        items: the questions, set by set.
        skipped: number of questions of the split that were left out, by reason. Questions that do not fit a context are
            counted as "context: reason", among those that were tried until there were `n`.
        format: of the file.
        split: "test", "tune" or "all".
    """

    items: list[Item]
    skipped: Mapping[str, int]
    format: str
    split: str


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
    """Read the questions of a file as items. Order and choices depend only on hashes of the questions.

    Args:
        path: a .json or .jsonl file, optionally compressed (.gz, .xz); or a hub id, "owner/name" or
            "owner/name/config", optionally with ":part" for another part than validation or test.
        format: one of `FORMATS`, or "own"; None: recognised by the fields of the first entry.
        contexts: names of `CONTEXTS`, each of which is a set; None: all that are possible. Your own file has its own
            sets.
        split: "test", "tune" or "all"; None: "test", and for your own file "all".
        n: the first n of each set; None: all.
        protocol: how the question is asked and the answer extracted, one of `PROTOCOLS`.
        every_swap: ask all swaps of a question (NQ-SWAP) instead of the first by hash.

    Raises:
        SettingsError: the file is missing, damaged, or has another format; it does not have what a context needs; an
            argument is invalid; or no question is left.
        MissingExtraError: `path` is a hub id, and `datasets` is not installed.
    """
    if split not in (None, "all", *SPLITS):
        raise SettingsError(f"`split` must be one of {(*SPLITS, 'all')}, got {split!r}")
    way, source = protocol_of(protocol), str(path)
    for name in contexts or ():
        if name not in CONTEXTS:
            raise SettingsError(f"`context` must be one of {list(CONTEXTS)}, got {name!r}; check the name")
    found, format = _opened(path, format)
    if format == OWN:
        return _own(found, source, contexts, split, n, way)
    split = split or "test"
    asked = [a for a in FORMATS[format].read(found) if split in ("all", split_of(a.asks))]
    skipped = Counter(a.skip for a in asked if a.skip)
    asked = sorted((a for a in asked if not a.skip), key=lambda a: a.order)
    if not asked:
        raise SettingsError(
            f"{source} must hold a question of the split {split!r}, got none (skipped: {dict(skipped)}); take "
            '`split` "all", or another file'
        )
    firsts, pages = _one_swap_each(asked), Pages(asked)
    if not every_swap:
        skipped[ANOTHER_SWAP] = len(asked) - len(firsts)
    made: list[Item] = []
    for context in _possible(contexts, asked, source, format):
        tried = asked if every_swap and context in SWAPPED else firsts
        made += islice(_items(tried, context, pages, way, skipped), n)
    if not made:
        raise SettingsError(
            f"{source} must hold a question that can be asked, got none (skipped: {dict(+skipped)}); "
            "take other contexts, or another file"
        )
    return Reading(made, dict(+skipped), format, split)


def _opened(path: str | Path, format: str | None) -> tuple[Iterator[Entry], str]:
    """(all entries, the name of their format)."""
    name = str(path)
    found = from_hub(name) if is_hub_id(name) and not Path(path).is_file() else entries(path)
    first = next(found, None)
    if first is None:
        raise SettingsError(f"{name} must hold at least one question, got an empty file; write one JSON object a line")
    return chain([first], found), recognised(first, format)


def _possible(wanted: Sequence[str] | None, asked: Sequence[Asked], source: str, format: str) -> list[str]:
    """The requested contexts, or all that are possible for these questions."""
    possible = [name for name in CONTEXTS if any(fits(a, name) for a in asked)]
    for name in wanted or ():
        if name not in possible:
            raise SettingsError(
                f"`context` of {source} ({format}) must be one of {possible}, got {name!r}; leave it out"
            )
    return [name for name in possible if not wanted or name in wanted]


def _items(asked: Sequence[Asked], context: str, pages: Pages, way: Protocol, skipped: Counter[str]) -> Iterator[Item]:
    for question in asked:
        try:
            yield item(question, context, pages, way)
        except Unfit as why:
            skipped[f"{context}: {why}"] += 1


def _one_swap_each(asked: Sequence[Asked]) -> list[Asked]:
    """Keep only the first swap of each question, and all questions without swaps."""
    first = {a.group: a for a in reversed(asked) if a.swapped}
    return [a for a in asked if not a.swapped or first[a.group] is a]


def _own(
    found: Iterator[Entry], source: str, contexts: Sequence[str] | None, split: str | None, n: int | None, way: Protocol
) -> Reading:
    """Read your own file, in its own order and, unless a split is requested, completely."""
    if contexts:
        raise SettingsError(
            f"`context` is for public sets, got {list(contexts)} for {source}, which has its own "
            "documents; leave it out"
        )
    split = split or "all"
    items = [i for i in map(own_item, found) if split in ("all", split_of(i.query or i.question))]
    if not items:
        raise SettingsError(f'{source} must hold a question of the split {split!r}, got none; take `split` "all"')
    firsts = [i for name in sets_of(items) for i in [i for i in items if i.set == name][:n]]
    put = [
        replace(i, question=way.wrap(i.question, i.task), query=i.query or i.question, protocol=way.name)
        for i in firsts
    ]
    return Reading(put, {}, OWN, split)
